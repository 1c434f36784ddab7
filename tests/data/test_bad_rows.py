"""Rows that are wrong, rows that do not fit, rows that come twice: B1 to B24 of the bad-input matrix.

Each through the real command line, by every verb that reads rows: `check`, `train` and `generate` say the same.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from tests.tiny import mapping, write_model

from tutelage.cli import main
from tutelage.data import Row, repeat_notes

VERBS = ("check", "train", "generate")
GOOD = '{"prompt": "a b", "completion": "c d"}\n'
TURN = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


def line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


def run(folder: Path, verb: str, rows: str | bytes, name: str = "train.jsonl", method: str = "sft", **sections) -> int:
    """Give a verb a recipe whose training rows are these; return its exit status."""
    (folder / name).write_bytes(rows.encode() if isinstance(rows, str) else rows)
    data = {"train": str(folder / name), "validation": None, **sections.pop("data", {})}
    recipe = mapping(folder, method, data=data, **sections)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    more = ["--out", str(folder / "out.jsonl"), "--by", "student", "--decoding.max-new-tokens", "2"]
    return main([verb, str(path), *(more if verb == "generate" else [])])


REFUSED = {
    "B1": (GOOD + "{'prompt': 1}\n" + GOOD, "train.jsonl:2 not valid JSON: expected property name at column 2"),
    "B2": (GOOD + '{"prompt": "a b", "comp', "train.jsonl:2 ends in the middle of a JSON object (file truncated?)"),
    "B3": (
        '{"prompt": "caf\u00e9"}'.encode("latin1"),
        "train.jsonl:1 not UTF-8 (byte 0xe9 at column 16); looks like Latin-1: iconv -f latin1 -t utf8",
    ),
    "B5": ("", "train.jsonl is empty"),
    "B7": ('{"prompt": "a", "prompt": "b"}', "train.jsonl:1 key 'prompt' appears twice"),
    "B8-null": (line(prompt=None), "train.jsonl:1 'prompt' is null"),
    "B8-missing": (GOOD + line(prompt="a"), "train.jsonl:2 'completion' is missing (train.jsonl:1 has it)"),
    "B9": (line(messages=[TURN, {**ANSWER, "content": None}]), "train.jsonl:1 messages[1].content is null"),
    "B9-tools": (
        line(messages=[TURN, {**ANSWER, "content": None, "tool_calls": [{}]}]),
        "train.jsonl:1 messages[1].tool_calls cannot be trained on; write the call as text in content",
    ),
    "B10": (GOOD * 3 + line(prompt="", completion="b"), "train.jsonl:4 'prompt' is empty; fill it in or drop the row"),
    "B11": (line(messages=[]), "train.jsonl:1 'messages' has no turns"),
    "B12": (
        line(messages=[{**TURN, "role": "human"}, ANSWER]),
        "train.jsonl:1 messages[0].role 'human' not accepted (system, user, assistant, tool); "
        "map with data.roles: {human: user}",
    ),
    "B13-start": (line(messages=[ANSWER, TURN]), "train.jsonl:1 'messages' starts with an assistant turn"),
    "B13-end": (line(messages=[TURN, {**TURN, "role": "system"}]), "train.jsonl:1 'messages' ends in a system turn"),
    "B13-kinds": (
        line(messages=[TURN, ANSWER]) + line(messages=[TURN]),
        "train.jsonl:2 'messages' ends in 'user', earlier rows end in an assistant turn; one kind of rows per source",
    ),
    "B17": (
        line(text="a b"),
        "train.jsonl: found columns [text]; need one of {prompt}, {prompt, completion}, {messages}; "
        "map with data.columns: {prompt: text}",
    ),
    "B18": (
        GOOD + line(prompt=["a"], completion="b"),
        "train.jsonl:2 'prompt' is a list, train.jsonl:1 has a string; one format per file",
    ),
    "B19": (line(prompt=3, completion="b"), "train.jsonl:1 'prompt' is a number; quote it"),
    "B20": (
        r'{"prompt": "a\ud800", "completion": "b"}',
        "train.jsonl:1 'prompt': invalid Unicode (lone surrogate); mend it, or set data.surrogates: replace",
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("row", REFUSED)
def test_refused_with_file_line_and_field(tmp_path, capsys, monkeypatch, row, verb):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)  # nothing is loaded before rows are read
    content, expected = REFUSED[row]
    assert run(tmp_path, verb, content) == 2
    said = capsys.readouterr().err
    assert f"tutelage: {expected}" in said
    assert not (tmp_path / "run-llama-sft" / "model").exists()


def test_problems_are_told_together_up_to_twenty_and_then_counted(tmp_path, capsys):
    bad = line(prompt=None, completion="a") * 15 + line(prompt="", completion="a") * 9 + '{"prompt": 1'
    assert run(tmp_path, "check", GOOD + bad) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22
    assert lines[-2:] == ["and 5 more", "25 problems in train.jsonl: null 15, empty 9, truncated 1"]


@pytest.mark.parametrize("verb", VERBS)
def test_B4_a_byte_order_mark_and_blank_lines_are_accepted(tmp_path, verb):
    assert run(tmp_path, verb, b"\xef\xbb\xbf" + GOOD.encode() + b"\n\r\n" + GOOD.encode()) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_B6_an_array_in_a_jsonl_file_is_accepted(tmp_path, verb):
    assert run(tmp_path, verb, f"[{GOOD},\n{GOOD}]") == 0


@pytest.mark.parametrize("verb", VERBS)
def test_B14_rows_beyond_what_the_model_can_look_at_are_dropped_counted_and_stop(tmp_path, capsys, verb):
    write_model(tmp_path / "llama-student", 1, max_position_embeddings=8)
    long = line(prompt="a b c d e", completion="f g h")  # 5, and 3 with its end: 9 of 8 positions
    fits = line(prompt="a b c d", completion="f g h")
    assert run(tmp_path, verb, fits * 9 + long) == 2
    said = capsys.readouterr().err
    assert (
        "1 of 10 rows would be dropped (1 longer than the model's 8 positions), more than data.max_dropped = 0.05"
        in said
    )
    assert "; lower max_new_tokens, shorten" in said if verb == "generate" else "; shorten the rows" in said
    assert "or set data.max_dropped to 0.1\n" in said
    assert run(tmp_path, verb, fits * 9 + long, data={"max_dropped": 0.1}) == 0
    assert "9 of 10" in (printed := capsys.readouterr().out)
    assert "1 dropped (longer than the model's 8 positions)" in printed


def test_B14_the_text_that_is_written_has_to_fit_as_well(tmp_path, capsys):
    write_model(tmp_path / "llama-student", 1, max_position_embeddings=8)
    rows = line(prompt="a b c d") + line(prompt="a b c")
    assert run(tmp_path, "check", rows, method="on-policy-kd") == 2  # its student writes 5 tokens
    assert "1 prompt and 5 new tokens longer than the model's 8 positions" in capsys.readouterr().err


def test_B14_only_the_writers_that_the_method_uses_need_room(tmp_path, capsys):
    """gkd on the data and the student's text has a section for a writing teacher, whose default is 128 tokens."""
    for role in ("student", "teacher"):
        write_model(tmp_path / f"llama-{role}", 1, max_position_embeddings=16)
    rows = line(prompt="a b c d", completion="e") * 4
    assert run(tmp_path, "check", rows, method="seqkd") == 0
    assert run(tmp_path, "check", rows, method="gkd") == 0
    capsys.readouterr()
    teacher_writes = ["--method.offline", "teacher"]
    assert main(["check", str(tmp_path / "recipe.yaml"), "--method.name", "gkd", *teacher_writes]) == 2
    assert "4 prompt and 128 new tokens longer than the model's 16 positions" in capsys.readouterr().err


def test_B14_measured_text_has_to_fit_behind_validation_prompts(tmp_path, capsys):
    for role in ("student", "teacher"):
        write_model(tmp_path / f"llama-{role}", 1, max_position_embeddings=16)
    rows = line(prompt="a b c d", completion="e") * 4
    held_out = tmp_path / "validation.jsonl"
    held_out.write_text(rows)
    for metric, status in (("loss", 0), ("rouge_l", 2), ("distances", 2)):
        sections = {"data": {"validation": str(held_out)}, "evaluation": {"metrics": [metric]}}
        assert run(tmp_path, "check", rows, **sections) == status
    assert "4 prompt and 128 new tokens" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_B15_nothing_is_truncated_and_too_many_drops_stop(tmp_path, capsys, verb):
    rows = GOOD * 19 + line(prompt="a b c", completion="c")
    assert run(tmp_path, verb, rows, data={"max_prompt_tokens": 2}) == 0
    assert "1 dropped (prompt longer than 2 tokens)" in capsys.readouterr().out
    more = rows + line(prompt="a b c", completion="d")
    assert run(tmp_path, verb, more, data={"max_prompt_tokens": 2}, output=str(tmp_path / "other")) == 2
    said = capsys.readouterr().err
    assert "2 of 21 rows would be dropped (2 prompt longer than 2 tokens)" in said
    assert (
        "raise data.max_prompt_tokens or data.max_tokens, or shorten the rows; or set data.max_dropped to 0.1" in said
    )


@pytest.mark.parametrize("verb", VERBS)
def test_B16_no_trainable_rows_is_a_mistake_and_no_success(tmp_path, capsys, verb):
    assert run(tmp_path, verb, GOOD * 8, data={"max_tokens": 3, "max_dropped": 1.0}) == 2
    expected = (
        "no trainable rows: 0 of 8 kept (8 prompt and response longer than 3 tokens); raise data.max_prompt_tokens"
    )
    assert expected in capsys.readouterr().err
    assert run(tmp_path, verb, line(prompt=None) * 3, data={"on_bad_row": "skip", "max_dropped": 1.0}) == 2
    assert "no trainable rows: 0 of 3 kept (3 null)" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_B20_surrogates_can_be_replaced(tmp_path, verb):
    rows = r'{"prompt": "a \ud800 b", "completion": "b"}'
    assert run(tmp_path, verb, rows, data={"surrogates": "replace"}) == 0


def test_B20_replaces_in_conversations_too(tmp_path):
    from tutelage.data import read_rows

    path = tmp_path / "train.jsonl"
    path.write_text(r'{"messages": [{"role": "user", "content": "a\udfff", "name": "\ud800"}], "id": [1, "x"]}')
    (row,) = read_rows(str(path), replace_surrogates=True)
    assert row.messages == ({"role": "user", "content": "a\ufffd", "name": "\ufffd"},)


@pytest.mark.parametrize("verb", VERBS)
def test_B21_control_characters_are_counted(tmp_path, capsys, verb):
    rows = GOOD + line(prompt="a\0", completion="b") + line(prompt="a", completion="\x1b b") + GOOD
    assert run(tmp_path, verb, rows) == 0
    assert "2 of 4 rows hold control characters (first: train.jsonl:2, '\\x00')" in one_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_B22_other_columns_are_named_once_and_their_values_do_not_matter(tmp_path, capsys, verb):
    rows = '{"prompt": "a", "completion": "b", "score": NaN, "id": 1}\n' * 3
    assert run(tmp_path, verb, rows) == 0
    assert one_line(capsys).count("columns [score, id] are not used") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_B23_what_is_not_parquet_is_named(tmp_path, capsys, verb):
    assert run(tmp_path, verb, "abc", name="train.parquet") == 2
    assert "train.parquet is not a Parquet file, or a damaged one: " in capsys.readouterr().err


def test_B23_parquet_of_other_types(tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [b"\xff"], "completion": ["a"]}), path)
    assert run(tmp_path, "check", path.read_bytes(), name="train.parquet") == 2
    assert "train.parquet row 1 'prompt' is binary data" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B24_rows_that_come_twice_and_prompts_in_both_are_told(tmp_path, capsys, verb):
    held_out = tmp_path / "validation.jsonl"
    held_out.write_text(line(prompt="a b", completion="t") + line(prompt="c d", completion="t"))
    rows = line(prompt="a b", completion="c") + line(prompt="e", completion="f") + line(prompt="a  b", completion="c")
    assert run(tmp_path, verb, rows, data={"validation": str(held_out)}) == 0
    printed = one_line(capsys)
    twice = "1 of 3 (0 letter by letter; first: train.jsonl:3 repeats train.jsonl:1)"
    assert f"training rows that repeat an earlier one: {twice}" in printed
    both = "1 of 2 (1 letter by letter; first: validation.jsonl:1 repeats train.jsonl:1)"
    assert f"validation prompts that are trained on: {both}" in printed


def test_B24_what_differs_in_a_sign_of_a_sum_is_no_repeat():
    assert not repeat_notes([Row("a:1", "2 + 2 =", "4"), Row("a:2", "2 - 2 =", "0"), Row("a:3", "22 =", "4")])
    assert not repeat_notes([Row("a:1", "Hi", "a"), Row("a:2", "Hi", "b")])  # two answers to one prompt
    talk = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"})
    (note,) = repeat_notes([Row("a:1", messages=talk)], [Row("b:1", messages=talk[:1])])
    assert note.startswith("validation prompts that are trained on: 1 of 1")


def test_bad_rows_can_be_skipped_and_are_counted_as_dropped(tmp_path, capsys):
    rows = GOOD * 8 + line(prompt=None, completion="a") + '{"prompt"'
    assert run(tmp_path, "train", rows, data={"on_bad_row": "skip"}) == 2
    assert "2 of 10 rows would be dropped (1 null, 1 truncated)" in capsys.readouterr().err
    for verb in VERBS:
        assert run(tmp_path, verb, rows, data={"on_bad_row": "skip", "max_dropped": 0.2}) == 0
        printed = one_line(capsys)
        assert "8 of 10" in printed
        assert "skipped 2 bad rows: null 1, truncated 1 (first: train.jsonl:9 'prompt' is null)" in printed


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", 'prompt,completion\na,b\n"open,b\n'),
        ("train.json", '[{"prompt": "a", "completion": "b"}, {"prompt"'),
        ("train.jsonl", b"\x1f\x8b" + b"x" * 40),
        ("train.jsonl", gzip.compress(GOOD.encode() * 999)[:-9]),  # some rows, and then no more
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_never_skipped(tmp_path, name, content):
    assert run(tmp_path, "train", content, name=name, data={"on_bad_row": "skip", "max_dropped": 1.0}) == 2


def one_line(capsys) -> str:
    """What was printed, for sentences that a console may have wrapped."""
    return " ".join(capsys.readouterr().out.split())
