"""Reading rows: every format, and every message with its file and line."""

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tutelage.data import Row, fingerprint, read_rows
from tutelage.data.problems import SHOWN
from tutelage.data.sources import looks_like_path
from tutelage.errors import InputError

PAIRS = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(5)]
EXPECTED = [(pair["prompt"], pair["completion"]) for pair in PAIRS]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def error_of(path: Path, content: str | bytes, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_rows(write(path, content), **options)
    return str(caught.value)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return tmp_path / "train.jsonl"


def table(delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["prompt", "completion"])
    writer.writerows(EXPECTED)
    return out.getvalue()


FORMATS = {
    "a.jsonl": lines(PAIRS),
    "a.ndjson": lines(PAIRS),
    "a.json": json.dumps(PAIRS),
    "lines.json": lines(PAIRS),
    "array.jsonl": json.dumps(PAIRS, indent=2),
    "a.csv": table(","),
    "a.tsv": table("\t"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_text_format_reads_the_same_rows(tmp_path: Path, name: str, packed: bool) -> None:
    content = FORMATS[name].encode()
    path = tmp_path / (name + ".gz" if packed else name)
    rows = read_rows(write(path, gzip.compress(content) if packed else content))
    assert [(row.prompt, row.completion) for row in rows] == EXPECTED
    assert all(row.where.startswith(path.name) for row in rows)


def test_parquet_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS[3:]), folder / "b.parquet")
    write(folder / "a.jsonl", lines(PAIRS[:3]))
    write(folder / "README.md", "not rows")
    rows = read_rows(str(folder))
    assert [(row.prompt, row.completion) for row in rows] == EXPECTED
    assert [row.where for row in rows][2:4] == ["a.jsonl:3", "b.parquet row 1"]
    assert [row.where for row in read_rows(str(folder), limit=4)] == [row.where for row in rows][:4]


def test_parquet_conversations_lose_the_nulls_of_their_structs(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi", "name": None},
        {"role": "assistant", "content": "Yes", "name": "b"},
    ]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), path)
    (row,) = read_rows(str(path))
    assert row.messages == (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "name": "b"},
    )


def test_where_counts_blank_lines_and_lines_within_cells(tmp_path: Path, train: Path) -> None:
    rows = read_rows(write(train, b"\xef\xbb\xbf" + b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}'))
    assert rows == [Row("train.jsonl:1", "a"), Row("train.jsonl:3", "b")]
    rows = read_rows(write(tmp_path / "a.csv", 'prompt\n"two\nlines"\nlast\n'))
    assert [(row.where, row.prompt) for row in rows] == [("a.csv:2", "two\nlines"), ("a.csv:4", "last")]


def test_columns_roles_and_limit(train: Path) -> None:
    source = write(train, lines([{"q": "a", "a": "b", "id": 1}, {"q": 7, "a": "b", "id": 1}]))
    assert read_rows(source, columns={"prompt": "q", "completion": "a"}, limit=1)[0].completion == "b"
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    source = write(train, lines([{"conversations": talk}]))
    (row,) = read_rows(source, columns={"messages": "conversations"}, roles={"human": "user", "gpt": "assistant"})
    assert row.messages == ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


GOOD = '{"prompt": "a", "completion": "b"}\n'
TURN = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
CASES = {
    "B1": (
        GOOD + '{"prompt": "a", x}\n' + GOOD,
        "train.jsonl:2 not valid JSON: expected property name at column 17",
    ),
    "B2": (
        GOOD + '{"prompt": "a", "comp',
        "train.jsonl:2 ends in the middle of a JSON object (file truncated?)",
    ),
    "B3": (
        '{"prompt": "caf\u00e9"}'.encode("latin1"),
        "train.jsonl:1 not UTF-8 (byte 0xe9 at column 16); looks like Latin-1: iconv -f latin1 -t utf8",
    ),
    "UTF-16": (GOOD.encode("utf-16"), "train.jsonl:1 not UTF-8; looks like UTF-16: iconv -f utf-16 -t utf8"),
    "B5": ("", "train.jsonl is empty"),
    "B5 blank": ("\n \n", "train.jsonl is empty"),
    "B5 array": ("[]", "train.jsonl is empty"),
    "B7": ('{"prompt": "a", "prompt": "b"}', "train.jsonl:1 key 'prompt' appears twice"),
    "B8 null": ('{"prompt": null}', "train.jsonl:1 'prompt' is null"),
    "B8 missing": (GOOD + '{"prompt": "a"}', "train.jsonl:2 'completion' is missing (train.jsonl:1 has it)"),
    "B9": (
        lines([{"messages": [{"role": "user", "content": None}]}]),
        "train.jsonl:1 messages[0].content is null",
    ),
    "B10": (GOOD + '{"prompt": " ", "completion": "b"}', "train.jsonl:2 'prompt' is empty"),
    "empty completion": (
        '{"prompt": "a", "completion": ""}',
        "'completion' is empty: an example that teaches only to stop",
    ),
    "B11": (lines([{"messages": []}]), "train.jsonl:1 'messages' has no turns"),
    "B12": (
        lines([{"messages": [{"role": "human", "content": "a"}]}]),
        "train.jsonl:1 messages[0].role 'human' not accepted (system, user, assistant, tool); "
        "map with data.roles: {human: user}",
    ),
    "B13 start": (
        lines([{"messages": [ANSWER, TURN]}]),
        "train.jsonl:1 'messages' starts with an assistant turn",
    ),
    "B13 end": (
        lines([{"messages": [{**TURN, "role": "system"}]}]),
        "train.jsonl:1 'messages' ends in a system turn",
    ),
    "B13 sorts": (
        lines([{"messages": [TURN, ANSWER]}, {"messages": [TURN]}]),
        "train.jsonl:2 'messages' ends in 'user', earlier rows end in an assistant turn",
    ),
    "B17": (
        '{"text": "a"}',
        "found columns [text]; need one of {prompt}, {prompt, completion}, {messages}; "
        "map with data.columns: {prompt: text}",
    ),
    "B18": (
        GOOD + '{"prompt": ["a"], "completion": "b"}',
        "train.jsonl:2 'prompt' is a list, train.jsonl:1 has a string",
    ),
    "B19": ('{"prompt": 3}', "train.jsonl:1 'prompt' is a number; quote it"),
    "B20": (r'{"prompt": "a\ud800"}', "train.jsonl:1 'prompt': invalid Unicode (lone surrogate)"),
    "conversational": (lines([{"prompt": [TURN]}]), "map it with data.columns: {messages: prompt}"),
    "both": (lines([{"prompt": "a", "messages": [TURN]}]), "choose with data.columns: {messages: messages}"),
    "mixed": ('{"prompt": "a"}\n' + GOOD, "train.jsonl:2 has 'completion', train.jsonl:1 has none"),
    "not an object": ('"a"\n' + GOOD, "train.jsonl:1 is a string; expected an object"),
    "pretty": ('{\n "prompt": "a"\n}\n', "train.jsonl holds one JSON object over several lines"),
    "broken array": (
        '[{"prompt": "a"},\n {"prompt" "b"}]',
        "train.jsonl:2 not valid JSON: expected ':' delimiter",
    ),
    "array item": ('[{"prompt": "a"}, {"prompt": ""}]', "train.jsonl item 2 'prompt' is empty"),
    "tool calls": (
        lines([{"messages": [TURN, {"role": "assistant", "content": None, "tool_calls": [{}]}]}]),
        "messages[1].tool_calls cannot be trained on",
    ),
    "broken gzip": (gzip.compress(GOOD.encode() * 99)[:-9], "the gzip data is damaged or ends early"),
}


@pytest.mark.parametrize("name", CASES)
def test_messages_name_file_and_line(train: Path, name: str) -> None:
    content, expected = CASES[name]
    assert expected in error_of(train, content)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "prompt,completion\na,b\na,b,c\n", "a.csv:3 has 3 cells, the header has 2"),
        ("a.csv", "prompt,prompt\na,b\n", "a.csv:1 column 'prompt' appears twice"),
        ("a.csv", 'prompt\n"never closed\n', "not valid CSV: unexpected end of data; is a quote left open?"),
        ("a.csv", "prompt\n", "a.csv is empty"),
        ("a.csv", b"prompt\nok\ncaf\xe9\n", "a.csv:3 not UTF-8 (byte 0xe9 at column 4)"),
        ("a.parquet", "abc", "a.parquet is not a Parquet file"),
        ("a.txt", "abc", "a.txt: unknown format; expected one of .jsonl"),
    ],
)
def test_messages_of_other_formats(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert expected in error_of(tmp_path / name, content)


def test_problems_are_collected_counted_and_cut(train: Path) -> None:
    bad = ['{"prompt": ""}'] * 19 + ['{"prompt": null}'] * 3 + ["{"]
    text = error_of(train, '{"prompt": "a"}\n' + "\n".join(bad))
    told = text.splitlines()
    assert told[0].startswith("train.jsonl:2 'prompt' is empty")
    assert len(told) == SHOWN + 2
    assert told[-2] == "and 3 more"
    assert told[-1] == "23 problems in train.jsonl: empty 19, null 3, truncated 1"


def test_columns_that_do_not_exist(train: Path) -> None:
    assert "maps prompt to 'question', which is not among them" in error_of(train, GOOD, columns={"prompt": "question"})
    assert "unknown key 'promt'" in error_of(train, GOOD, columns={"promt": "a"})


def test_two_user_turns_in_a_row_are_noted(train: Path) -> None:
    (note,) = read_rows(write(train, lines([{"messages": [TURN, TURN]}]))).notes
    assert note == "1 of 1 conversations have two user or two assistant turns in a row (first: train.jsonl:1)"
    assert not read_rows(write(train, lines([{"messages": [TURN, ANSWER, TURN]}]))).notes


def test_missing_files_never_reach_the_hub(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(train, GOOD)
    with pytest.raises(InputError, match=r"no such file: .*did you mean .*train.jsonl\?"):
        read_rows(str(train.with_name("trian.jsonl")))
    with pytest.raises(InputError, match=r"no such file: \./train"):
        read_rows("./train")
    monkeypatch.chdir(train.parent)
    Path("rows").mkdir()
    assert looks_like_path("rows/train")
    assert not looks_like_path("org/model-v1.5")
    with pytest.raises(InputError, match="no data files in this folder"):
        read_rows("rows")


def test_hub_names_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list:
        asked.append((name, config, split))
        if name == "gone":
            raise FileNotFoundError("no such dataset")
        return PAIRS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("org/sums:test", limit=2)[1].where == "org/sums:test row 2"
    assert len(read_rows("sums")) == 5
    assert len(read_rows("org/sums[main]:dev")) == 5
    assert asked == [("org/sums", None, "test"), ("sums", None, "train"), ("org/sums", "main", "dev")]
    with pytest.raises(InputError, match=r"'gone' is no local file, and split 'train'.*no such dataset"):
        read_rows("gone")


def test_fingerprint_is_of_the_content_in_order() -> None:
    rows = [Row("a:1", "x", "y"), Row("a:2", "x", "z")]
    assert fingerprint(rows) == fingerprint([Row("b:7", "x", "y"), Row("c:2", "x", "z")])
    different = [
        rows[::-1],
        rows[:1],
        [Row("a:1", "xy", ""), rows[1]],
        [Row("a:1", "x"), rows[1]],
        [Row("a:1", messages=({"role": "user", "content": "x"},)), rows[1]],
    ]
    marks = {fingerprint(each) for each in [rows, *different]}
    assert len(marks) == 6
    assert all(len(mark) == 16 and int(mark, 16) >= 0 for mark in marks)


def test_import_stays_light() -> None:
    heavy = {"torch", "datasets", "transformers", "pyarrow"}
    code = f"import sys, tutelage.data; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
