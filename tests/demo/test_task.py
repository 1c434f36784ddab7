"""The courier task: its checker, its split, its files and its tokenizer."""

import json
import random
from itertools import pairwise

import pytest

from tutelage.demo import task
from tutelage.errors import InputError

OPPOSITE = {"n": "s", "s": "n", "e": "w", "w": "e"}


@pytest.fixture(scope="module")
def drawn() -> list[task.Problem]:
    return task.problems(300, random.Random(3))


def test_every_road_can_be_walked_back_and_every_town_be_reached():
    assert len(task.TOWNS) == 25
    for town, roads in task.ROADS.items():
        for road, nearby in roads.items():
            assert task.ROADS[nearby][OPPOSITE[road]] == town
    assert len(task.distances("Elm")) == 25


def test_the_roads_are_those_of_the_map():
    assert task.ROADS["Nut"] == {"e": "Tor", "s": "Quay"}
    assert task.ROADS["Rye"] == {"w": "Dell", "n": "Ivy", "s": "Elm"}
    assert task.ROADS["Kay"] == {"w": "Elm", "n": "Cod"}


@pytest.mark.parametrize("style", task.STYLES)
def test_every_completion_is_right(style: str, drawn: list[task.Problem]):
    rng = random.Random(4)
    for problem in drawn:
        text = task.completion_of(problem, rng, style)
        assert text.startswith(style)
        assert task.answer(text) == " ".join(problem)
        assert task.is_correct(task.prompt_of(problem), text)
        assert len(text.split()) <= task.LONGEST_COMPLETION


def test_completions_take_a_shortest_way(drawn: list[task.Problem]):
    for problem in drawn:
        steps = task.completion_of(problem, random.Random(5), "towns").split()[2:]
        shortest = sum(task.distances(goal)[town] for town, goal in pairwise(problem))
        assert len(steps) == shortest + task.STOPS


def test_both_styles_and_both_of_two_equal_ways_are_written():
    problem = ("Nut", "Hay", "Nut", "Quay")
    rng = random.Random(6)
    starts = {" ".join(task.completion_of(problem, rng).split()[:3]) for _ in range(100)}
    assert starts == {"towns Nut Tor", "towns Nut Quay", "roads Nut e", "roads Nut s"}


@pytest.mark.parametrize("style", task.STYLES)
def test_a_town_replaced_or_dropped_is_noticed(style: str, drawn: list[task.Problem]):
    for problem in drawn[:50]:
        prompt = task.prompt_of(problem)
        words = task.completion_of(problem, random.Random(7), style).split()
        for at, word in enumerate(words):
            assert not task.is_correct(prompt, " ".join(words[:at] + words[at + 1 :]))
            if word in task.ROADS:
                wrong = next(town for town in task.TOWNS if task.distances(word)[town] > 2)
                assert not task.is_correct(prompt, " ".join([*words[:at], wrong, *words[at + 1 :]]))


def test_a_longer_way_along_roads_is_right_too():
    prompt = "from Cod to Elm then Rye then Ivy"
    assert task.is_correct(prompt, "towns Cod Oak Cod Kay Elm drop Rye drop Ivy drop")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "towns",
        "towns Nowhere",
        "Cod Kay Elm drop Rye drop Ivy drop",
        "towns Cod e Kay Elm drop Rye drop Ivy drop",
        "roads Cod s Kay w Elm drop n Rye drop n",
        "towns Cod Kay Elm drop Rye drop Ivy drop <eos>",
    ],
)
def test_what_is_no_walk_has_no_answer(text: str):
    assert task.answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "towns Cod Kay Elm drop Rye drop Ivy",
        "towns Cod Kay Elm drop Rye drop Ivy drop drop",
        "towns Kay Elm drop Rye drop Ivy drop",
        "towns Cod Kay Elm Rye drop Elm drop Rye Ivy drop",
    ],
)
def test_a_walk_to_other_addresses_is_wrong(text: str):
    assert task.answer(text) is not None
    assert not task.is_correct("from Cod to Elm then Rye then Ivy", text)


def test_no_problem_is_in_two_files(tmp_path):
    files = task.write(tmp_path, 0, labels=200, prompts=2000, tests=500)
    rows = {name: [json.loads(line) for line in file.open()] for name, file in files.items()}
    prompts = {name: {row["prompt"] for row in listed} for name, listed in rows.items()}
    assert {name: len(found) for name, found in prompts.items()} == {
        "labels": 200,
        "prompts": 2000,
        "test": 500,
    }
    assert len(set.union(*prompts.values())) == 2700
    assert all(set(row) == {"prompt"} for row in rows["prompts"])
    assert all(task.is_correct(**_as_arguments(row)) for row in rows["labels"] + rows["test"])


def _as_arguments(row: task.Row) -> dict[str, str]:
    return {"prompt": row["prompt"], "response": row["completion"]}


def test_training_of_one_seed_never_meets_the_test_of_another():
    training = {problem for seed in range(5) for problem in task.problems(1000, random.Random(seed))}
    held_out = {problem for seed in range(5) for problem in task.problems(500, random.Random(seed), test=True)}
    assert not training & held_out


def test_a_seed_fixes_the_bytes(tmp_path):
    sizes = {"labels": 50, "prompts": 60, "tests": 40}
    first = task.write(tmp_path / "a", 1, **sizes)
    again = task.write(tmp_path / "b", 1, **sizes)
    other = task.write(tmp_path / "c", 2, **sizes)
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes()
        assert first[name].read_bytes() != other[name].read_bytes()


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(InputError, match="cannot draw 10001 different test problems"):
        task.problems(10_001, random.Random(0), test=True)


def test_the_tokenizer_gives_back_every_text(drawn: list[task.Problem]):
    coder = task.tokenizer()
    assert len(coder) <= 100
    for row in task.labelled(drawn, random.Random(8)):
        for text in row.values():
            ids = coder(text).input_ids
            assert coder.unk_token_id not in ids
            assert len(ids) == len(text.split())
            assert coder.decode([*ids, coder.eos_token_id, coder.pad_token_id], skip_special_tokens=True) == text


def test_the_tokenizer_can_be_saved_and_loaded(tmp_path):
    from transformers import AutoTokenizer

    task.tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "roads Cod s Kay w Elm drop n Rye drop n Ivy drop"
    assert loaded.decode(loaded(text).input_ids) == text
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
