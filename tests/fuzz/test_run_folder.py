"""Damaged run folders: a run goes on, says that it is finished, or refuses, and never ends in any other error."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.mutations import LENGTHS, mutated, refusal_of
from tests.tiny import mapping

from tutelage.errors import TutelageError
from tutelage.recipe import Recipe, recipe_of
from tutelage.training.run import train
from tutelage.training.tracking import JsonLines

FILES = (
    "config.yaml",
    "evaluation.json",
    "environment.json",
    "metrics.jsonl",
    "samples.jsonl",
    "checkpoints/step-00000002/state.json",
    "checkpoints/step-00000002/MANIFEST.json",
    "checkpoints/step-00000001/MANIFEST.json",
    "model/MANIFEST.json",
)
PIECES = [
    *(
        b"null",
        b"{}",
        b"[]",
        b'""',
        b"NaN",
        b"1e999",
        b"-1",
        b"true",
        b'"',
        b"\\",
        b"\n",
        b",",
        b"\0",
        b"\xff",
        b"\xe9",
    ),
    *(b"[" * 3000, b"9" * 5000, b'"files"', b'"size"', b'"../../x"', b'"/etc/passwd"', b"train:", b"method: sft\n"),
    *(rb"\ud800", b"&a [*a]", b'"identity"', b'"recipe"', b'"steps"', b'"schema": 3,'),
]


class ReadWhole(TutelageError):
    """Everything in the folder was read; from here on models would be loaded."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of(mapping(folder, "sft", train={"steps": 2, "save_every": 1, "keep_checkpoints": 2}))
    train(recipe)
    return recipe


@LENGTHS
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run(run: Recipe, monkeypatch: pytest.MonkeyPatch, name: str, cases: int) -> None:
    def would_load(*_: object) -> None:
        raise ReadWhole("models would be loaded")

    monkeypatch.setattr("tutelage.training.run.prepare", would_load)
    path = Path(run.output) / name
    whole = path.read_bytes()

    @settings(max_examples=cases // len(FILES))
    @given(mutated([whole], PIECES), st.booleans())
    def only_our_errors(content: bytes, verify: bool) -> None:
        path.write_bytes(content)
        refusal_of(lambda: train(run, report=lambda line: None, verify=verify))

    try:
        only_our_errors()
    finally:
        path.write_bytes(whole)
    assert train(run, report=lambda line: None).model.is_dir()  # the files are as they were


@LENGTHS
def test_damaged_lines_of_metrics(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "metrics.jsonl"
    seed = b"".join(json.dumps({"step": step, "loss": 0.5}).encode() + b"\n" for step in range(3))

    @settings(max_examples=cases)
    @given(mutated([seed], PIECES), st.integers(0, 200))
    def what_is_kept_is_whole_lines(content: bytes, kept: int) -> None:
        path.write_bytes(content)
        lines = JsonLines(path, kept)
        lines.log(4, {"loss": float("nan")})
        lines.close()
        *before, last, end = path.read_bytes().split(b"\n")
        assert json.loads(last) == {"step": 4, "loss": "NaN"}
        assert end == b""
        assert content.startswith(b"\n".join(before))

    what_is_kept_is_whole_lines()
