"""Teacher text on disk: written once, reused, repaired after a kill, refused when it is someone else's."""

import json
from pathlib import Path

import pytest
from tests.tiny_models import language_model

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.errors import InputError
from tutelage.rollouts import samplers
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.samplers import TeacherSampler
from tutelage.rollouts.store import TextStore

FINGERPRINT = {"teacher": "big", "decoding": {"strategy": "beam", "beams": 5}, "seed": 0}
TEXT = Rollout.of([(3, 4), (5,)], [(6, 7, 1), (8, 1)], writer="teacher")


def path_of(folder: Path) -> Path:
    return folder / "run" / "text.jsonl"


def test_what_is_added_is_there_at_once_and_for_the_next_process(tmp_path: Path) -> None:
    store = TextStore(path_of(tmp_path), FINGERPRINT)
    assert len(store) == 0
    assert not path_of(tmp_path).exists()
    store.add(TEXT)
    for reader in (store, TextStore(path_of(tmp_path), FINGERPRINT)):
        assert len(reader) == 2
        assert reader.get((3, 4)) == (6, 7, 1)
        assert reader.get((5,)) == (8, 1)
        assert reader.get((9,)) is None


def test_adding_in_parts_is_adding_at_once(tmp_path: Path) -> None:
    whole, parts = TextStore(tmp_path / "whole.jsonl", FINGERPRINT), tmp_path / "parts.jsonl"
    whole.add(TEXT)
    for row in range(2):
        TextStore(parts, FINGERPRINT).add(TEXT.select([row]))
    assert parts.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("lost", range(1, 60, 3))
def test_a_file_cut_anywhere_by_a_kill_is_repaired(tmp_path: Path, lost: int) -> None:
    path = path_of(tmp_path)
    TextStore(path, FINGERPRINT).add(TEXT)
    complete = path.read_bytes()
    path.write_bytes(complete[:-lost])
    store = TextStore(path, FINGERPRINT)
    for prompt, response in zip(TEXT.prompts, TEXT.responses, strict=True):
        assert store.get(prompt) in (None, response)
    assert store.get((5,)) is None
    missing = [row for row, prompt in enumerate(TEXT.prompts) if store.get(prompt) is None]
    store.add(TEXT.select(missing))
    assert path.read_bytes() == complete


def test_a_file_cut_in_its_first_line_is_begun_anew(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    TextStore(path, FINGERPRINT).add(TEXT)
    complete = path.read_bytes()
    for size in (0, 1, 20):
        path.write_bytes(complete[:size])
        store = TextStore(path, FINGERPRINT)
        assert len(store) == 0
        store.add(TEXT)
        assert path.read_bytes() == complete


@pytest.mark.parametrize(
    ("change", "named"),
    [({"teacher": "other"}, "teacher"), ({"seed": 1}, "seed"), ({"decoding": {"strategy": "sample"}}, "decoding")],
)
def test_text_with_another_fingerprint_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    TextStore(path_of(tmp_path), FINGERPRINT).add(TEXT)
    before = path_of(tmp_path).read_bytes()
    with pytest.raises(InputError, match=rf"text\.jsonl .*different: {named}\)"):
        TextStore(path_of(tmp_path), {**FINGERPRINT, **change})
    assert path_of(tmp_path).read_bytes() == before


@pytest.mark.parametrize("content", ["no json at all\n", "[1, 2]\n", '"text"\n', '{"prompt": [1], "response": [2]}\n'])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match="other"):
        TextStore(path, FINGERPRINT)
    assert path.read_text() == content


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    TextStore(path, FINGERPRINT).add(TEXT)
    header, _, last = path.read_text().splitlines(keepends=True)
    path.write_text(header + '{"prompt": [3, 4], "respo\n' + last)
    with pytest.raises(InputError, match=r"text\.jsonl:2"):
        TextStore(path, FINGERPRINT)


def examples() -> list[Example]:
    prompts = [(3, 4, 5), (6,), (7, 8)]
    return [Example(item, "", prompt, (), (), "", "") for item, prompt in enumerate(prompts)]


@pytest.mark.parametrize("strategy", ["sample", "beam"])
def test_the_teacher_writes_each_prompt_once(tmp_path: Path, strategy: str, monkeypatch) -> None:
    teacher, decoding = language_model("gpt2"), Decoding(strategy=strategy, beams=2, max_new_tokens=5)
    calls: list[int] = []
    real = samplers.decode

    def counted(model, prompts, *arguments, **options):
        calls.append(len(prompts))
        return real(model, prompts, *arguments, **options)

    monkeypatch.setattr(samplers, "decode", counted)

    def sampler() -> TeacherSampler:
        return TeacherSampler(teacher, decoding, 0, TextStore(path_of(tmp_path), FINGERPRINT))

    first = sampler()
    part = first.sample(examples()[:2], 0)
    whole = first.sample(examples(), 1)
    again = sampler().sample(examples()[::-1], 2)  # another process
    assert calls == [2, 1]
    assert whole.responses[:2] == part.responses
    assert again.responses == whole.responses[::-1]
    assert again.items == (2, 1, 0)
    assert set(whole.writers) == {"teacher"}


def test_what_the_teacher_writes_does_not_depend_on_what_it_wrote_before(tmp_path: Path) -> None:
    teacher, decoding = language_model("gpt2"), Decoding(max_new_tokens=5)
    together = TeacherSampler(teacher, decoding, 0, TextStore(tmp_path / "a.jsonl", FINGERPRINT))
    apart = TeacherSampler(teacher, decoding, 0, TextStore(tmp_path / "b.jsonl", FINGERPRINT))
    for row in (2, 0, 1):
        apart.sample(examples()[row : row + 1], row)
    assert apart.sample(examples(), 9) == together.sample(examples(), 0)


def test_lines_are_json_that_anyone_can_read(tmp_path: Path) -> None:
    TextStore(path_of(tmp_path), FINGERPRINT).add(TEXT)
    header, *rows = map(json.loads, path_of(tmp_path).read_text().splitlines())
    assert header == {"fingerprint": FINGERPRINT}
    assert rows == [{"prompt": [3, 4], "response": [6, 7, 1]}, {"prompt": [5], "response": [8, 1]}]
