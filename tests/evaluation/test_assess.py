"""A model measured on tasks: what is written, what is not done twice, what changes a protocol."""

import json
from dataclasses import replace

import pytest
from tests import tiny

from tutelage.config import Model
from tutelage.errors import InputError
from tutelage.evaluation import assess as module
from tutelage.evaluation.assess import assess
from tutelage.evaluation.record import load_records, load_scores
from tutelage.evaluation.responses import responses_path
from tutelage.evaluation.task import task_of


@pytest.fixture
def place(tmp_path):
    tiny.write_rows(tmp_path / "rows.jsonl", 6)
    return tmp_path, Model(model=str(tiny.write_model(tmp_path / "student", seed=1)))


def task(folder, **changes):
    return task_of(
        {
            "name": "toy",
            "description": "a toy",
            "data": {"source": str(folder / "rows.jsonl")},
            "decoding": {"strategy": "sample", "max_new_tokens": 6, "batch_size": 2},
            "seeds": [1, 2],
            "metrics": ["rouge", "loss"],
            **changes,
        }
    )


def measure(place, *tasks, **options):
    folder, student = place
    return assess(tasks, student=student, name="s", out=folder / "out", report=lambda line: None, **options)


def test_every_number_carries_its_interval_n_protocol_and_model(place):
    record = measure(place, task(place[0]))["toy"]
    for found in record.metrics.values():
        assert {"value", "low", "high", "n", "unit", "better", "protocol"} <= set(found)
        assert found["low"] <= found["value"] <= found["high"]
        assert found["protocol"] in record.protocols
    assert record.model["identity"]
    assert record.protocols[record.metrics["rouge_l"]["protocol"]]["seeds"] == [1, 2]
    assert "seeds" not in record.protocols[record.metrics["loss"]["protocol"]], "the loss does not look at them"


def test_what_is_stored_gives_the_same_numbers_again(place):
    folder, _ = place
    record = measure(place, task(folder))["toy"]
    stored = load_records(folder / "out")["toy"]
    assert stored.metrics == json.loads(json.dumps(record.metrics))
    for name, score in load_scores(folder / "out", stored).items():
        assert score.measurement().value == pytest.approx(record.metrics[name]["value"])


def test_responses_are_kept_with_their_items(place):
    folder, _ = place
    measure(place, task(folder))
    lines = [json.loads(line) for line in responses_path(folder / "out", "toy").read_text().splitlines()[1:]]
    assert {(line["seed"], line["item"]) for line in lines} == {
        (seed, f"rows.jsonl:{row}") for seed in (1, 2) for row in range(1, 7)
    }


def test_nothing_is_measured_twice(place, monkeypatch):
    record = measure(place, task(place[0]))["toy"]
    monkeypatch.setattr(module, "load_pair", lambda *_, **__: pytest.fail("the model was loaded again"))
    again = measure(place, task(place[0]))["toy"]
    assert again.metrics == json.loads(json.dumps(record.metrics))


def test_an_interrupted_evaluation_goes_on_and_ends_in_the_same_numbers(place, monkeypatch):
    folder, _ = place
    whole = measure(place, task(folder))["toy"]
    path = responses_path(folder / "out", "toy")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])  # cut in the middle of a line, as a kill does
    for stale in (folder / "out" / "evaluations").glob("toy*.json"):
        stale.unlink()
    assert measure(place, task(folder))["toy"].metrics == whole.metrics
    assert path.read_text().count("\n") == text.count("\n")


def test_the_batch_size_changes_nothing(place):
    folder, student = place
    first = measure(place, task(folder))["toy"]
    other = task(folder, decoding={"strategy": "sample", "max_new_tokens": 6, "batch_size": 5})
    second = assess([other], student=student, name="s", out=folder / "other", report=lambda line: None)["toy"]
    assert first.metrics == second.metrics


@pytest.mark.parametrize(
    "changes",
    [
        {"decoding": {"strategy": "greedy", "max_new_tokens": 6}},
        {"seeds": [1, 3]},
        {"metrics": [{"name": "rouge", "stemmer": False}, "loss"]},
        {"stop": ["e"]},
    ],
)
def test_another_protocol_is_another_number(place, changes):
    first = measure(place, task(place[0]))["toy"]
    second = measure(place, task(place[0], **changes))["toy"]
    assert first.metrics["rouge_l"]["protocol"] != second.metrics["rouge_l"]["protocol"]
    assert first.metrics["loss"]["protocol"] == second.metrics["loss"]["protocol"]


def test_another_model_in_the_same_place_is_measured_anew(place):
    folder, student = place
    first = measure(place, task(folder))["toy"]
    other = Model(model=str(tiny.write_model(folder / "other", seed=9)))
    second = measure((folder, replace(student, model=other.model)), task(folder))["toy"]
    assert first.metrics["loss"]["value"] != second.metrics["loss"]["value"]
    assert first.metrics["loss"]["protocol"] == second.metrics["loss"]["protocol"]
    assert first.metrics["rouge_l"]["value"] != second.metrics["rouge_l"]["value"], "the answers of another model"


def test_stop_texts_end_responses(place):
    folder, _ = place
    measure(place, task(folder, stop=["e"]))
    lines = [json.loads(line) for line in responses_path(folder / "out", "toy").read_text().splitlines()[1:]]
    assert not any("e" in line["response"] for line in lines)
    assert any(line["tokens"] > len(line["response"]) for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["rouge", "rouge"]}, "has a metric twice"),
        ({"data": {"source": "gone.jsonl"}}, "no such file: gone.jsonl"),
    ],
)
def test_mistakes_are_named(place, changes, message):
    with pytest.raises(InputError, match=message):
        measure(place, task(place[0], **changes))


def test_two_tasks_of_one_name_are_refused(place):
    with pytest.raises(InputError, match="two tasks of one name"):
        measure(place, task(place[0]), task(place[0]))


def test_an_encoder_decoder_is_measured_too(tmp_path):
    tiny.write_rows(tmp_path / "rows.jsonl", 3)
    student = Model(model=str(tiny.write_model(tmp_path / "student", seed=1, kind="t5")))
    assert measure((tmp_path, student), task(tmp_path))["toy"].metrics["loss"]["n"] == 3
