"""Rows from damaged files: they are read or refused, and never end in any other error."""

import gzip
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.mutations import LENGTHS, mutated, refusal_of
from tests.tiny import mapping, tokenizer

from tutelage.recipe import recipe_of
from tutelage.training.texts import Reader, Texts, read_texts

PAIRS = [{"prompt": "a b", "completion": "c"}, {"prompt": "d \u2028 é", "completion": "e f", "id": 1}]
TALKS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "c"}]},
    {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
]
PROMPTS = [{"prompt": "a b"}, {"prompt": "c"}]
PIECES = [
    *(b"null", b"{}", b"[]", b'""', b"NaN", b"1e999", b"-0", b"true", b'"', b"\\", b"\n", b"\r\n", b",", b"\t", b"\0"),
    *(rb"\ud800", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"\xe9", b"[" * 3000, b"9" * 5000, b'{"a":' * 400),
    *(b'"prompt"', b'"completion"', b'"messages"', b'"role"', b'"content"', b'"tool_calls"', b'"from"', b'"system"'),
]
CHAT = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


SEEDS = {
    ".jsonl": [lines(PAIRS), lines(TALKS[:1]), lines(TALKS[1:]), lines(PROMPTS), gzip.compress(lines(PAIRS))],
    ".json": [json.dumps(PAIRS, indent=1).encode(), json.dumps(TALKS[:1]).encode(), lines(PROMPTS)],
    ".csv": [
        b'prompt,completion\na b,c\n"d\n e",f\n',
        b"prompt\na\nb\n",
        b'\xef\xbb\xbf"prompt","x"\r\n"a ""b""",c\r\n',
    ],
    ".tsv": [b"prompt\tcompletion\na b\tc\n"],
    ".parquet": [parquet(PAIRS), parquet(TALKS[:1]), parquet([{"prompt": "a", "t": 1.5, "l": [1, None]}])],
}


@cache
def reader() -> Reader:
    made = tokenizer()
    made.chat_template = CHAT
    return Reader(made, (1,), False, positions=64)


@LENGTHS
@pytest.mark.parametrize("suffix", SEEDS)
def test_rows_are_read_or_refused(tmp_path: Path, suffix: str, cases: int) -> None:
    path = tmp_path / f"train{suffix}"
    whole = mapping(tmp_path, "sft", data={"train": str(path), "validation": None})
    options = st.fixed_dictionaries(
        {
            "on_bad_row": st.sampled_from(("stop", "skip")),
            "surrogates": st.sampled_from(("refuse", "replace")),
            "template": st.sampled_from(("auto", "chat", "plain", "Q: {prompt}")),
            "max_dropped": st.sampled_from((0.05, 1.0)),
            "limit": st.sampled_from((None, 1)),
            "columns": st.sampled_from(({}, {"messages": "conversations"}, {"prompt": "completion"})),
        }
    )

    @settings(max_examples=cases)
    @given(mutated(SEEDS[suffix], PIECES), options)
    def only_our_errors(content: bytes, data: dict[str, Any]) -> None:
        path.write_bytes(content)
        recipe = recipe_of({**whole, "data": {**whole["data"], **data}})
        taken: list[Texts] = []
        refusal = refusal_of(lambda: taken.append(read_texts(recipe, reader())))
        assert taken or (refusal or "").strip()
        for texts in taken:
            assert len(texts.train) > 0
            assert all(example.prompt for example in texts.train)

    only_our_errors()


@pytest.mark.parametrize("suffix", SEEDS)
def test_the_seeds_are_read(tmp_path: Path, suffix: str) -> None:
    for number, content in enumerate(SEEDS[suffix]):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        data = {"train": str(path), "validation": None}
        if b"conversations" in content:
            data["columns"] = {"messages": "conversations"}
        read_texts(recipe_of(mapping(tmp_path, "sft", data=data)), reader())
