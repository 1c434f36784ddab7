"""Items of a task: rendered from any columns, refused with a word where they do not fit."""

import json

import pytest

from tutelage.errors import InputError
from tutelage.evaluation.items import fingerprint, read_items
from tutelage.evaluation.task import FewShot, TaskData


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


ROWS = [{"q": "2 + 2", "a": "4"}, {"q": "1 + 2", "a": "3"}, {"q": "{5}", "a": "5"}]


def test_prompts_and_references_are_rendered_from_columns(tmp_path):
    data = TaskData(source=write(tmp_path, ROWS), prompt="Q: {q}\nA:", reference=" {a}")
    items = read_items(data, tmp_path)
    assert [item.prompt for item in items] == ["Q: 2 + 2\nA:", "Q: 1 + 2\nA:", "Q: {5}\nA:"]
    assert items[1].references == (" 3",)
    assert items[1].place == "rows.jsonl:2"


def test_a_column_may_hold_several_references(tmp_path):
    source = write(tmp_path, [{"prompt": "x", "output": ["one", "two"]}, {"prompt": "y", "output": "three"}])
    items = read_items(TaskData(source=source, reference="{output}"), tmp_path)
    assert [item.references for item in items] == [("one", "two"), ("three",)]


def test_worked_examples_come_first_in_the_items_own_form(tmp_path):
    shots = FewShot(source=write(tmp_path, ROWS, "shots.jsonl"), rows=(1, 0), separator="\n\n")
    data = TaskData(source=write(tmp_path, ROWS), prompt="Q: {q}\nA:", reference=" {a}", few_shot=shots, limit=1,
                    preamble="Answer.\n\n")  # fmt: skip
    (item,) = read_items(data, tmp_path)
    assert item.prompt == "Answer.\n\nQ: 1 + 2\nA: 3\n\nQ: 2 + 2\nA: 4\n\nQ: 2 + 2\nA:"


def test_items_may_lie_in_a_list_inside_one_object(tmp_path):
    source = write(tmp_path, [{"canary": "x", "examples": [{"input": "not True is", "target": "False"}]}], "bbh.json")
    data = TaskData(source=source, records="examples", prompt="{input}", reference=" {target}",
                    choices=("True", "False"), answer="target")  # fmt: skip
    (item,) = read_items(data, tmp_path)
    assert (item.prompt, item.answer, item.choices) == ("not True is", 1, ("True", "False"))


@pytest.mark.parametrize(("answer", "expected"), [("yes", 0), (1, 1), ("B", 1), ("(A)", 0), (True, 0), (False, 1)])
def test_the_right_choice_is_a_text_an_index_a_letter_or_a_truth(tmp_path, answer, expected):
    source = write(tmp_path, [{"prompt": "x", "label": answer}])
    data = TaskData(source=source, reference=None, choices=("yes", "no"), answer="label")
    assert read_items(data, tmp_path)[0].answer == expected


def test_a_source_is_looked_for_in_the_data_folder(tmp_path):
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets", ROWS)
    assert len(read_items(TaskData(source="sets/rows.jsonl", prompt="{q}", reference=None), tmp_path)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{question}"}, r"template '\{question\}' does not fit .*found columns \[q, a\]"),
        ({"prompt": "{q.__class__}"}, "does not fit"),
        ({"choices": ("7",), "answer": "a"}, r"'a' is '4', none of the choices \['7'\]"),
        ({"choices": "a", "answer": "q"}, "no list of texts in column 'a'"),
        ({"choices": ("7",)}, "data.answer"),
        ({"records": "examples"}, "no list in column 'examples'"),
        ({"source": "nowhere.jsonl"}, "name the folder that holds it with --data-folder"),
        ({"few_shot": {"rows": [9]}}, "has 3 rows, no row 9"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    source = write(tmp_path, ROWS)
    if "few_shot" in changes:
        changes = {"few_shot": FewShot(source=source, **changes["few_shot"])}
    with pytest.raises(InputError, match=message):
        read_items(TaskData(**{"source": source, "prompt": "{q}", "reference": "{a}", **changes}), tmp_path)


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    data = TaskData(source=write(tmp_path, ROWS), prompt="{q}", reference="{a}")
    moved = TaskData(source=write(tmp_path, ROWS, "other.jsonl"), prompt="{q}", reference="{a}")
    other = TaskData(source=data.source, prompt="{q} ", reference="{a}")
    first, second, third = (fingerprint(read_items(each, tmp_path)) for each in (data, moved, other))
    assert first == second != third
