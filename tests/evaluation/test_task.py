"""Tasks: those that come along can be read; what is wrong in one is named with the nearest known key."""

import pytest

from tutelage.errors import InputError
from tutelage.evaluation.task import load_task, task_names, task_of

MINIMAL = {"name": "t", "description": "d", "data": {"source": "x.jsonl"}, "metrics": ["rouge"]}


@pytest.mark.parametrize("name", task_names())
def test_every_task_that_comes_along_can_be_read(name):
    task = load_task(name)
    assert task.name == name
    assert task.description


def test_a_metric_is_a_name_or_a_mapping():
    task = task_of({**MINIMAL, "metrics": ["loss", {"name": "rouge", "stemmer": False}]})
    assert [metric.name for metric in task.metrics] == ["loss", "rouge"]
    assert task.metrics[1].stemmer is False


def test_keys_can_be_overridden():
    task = task_of(MINIMAL, ["--data.limit", "5", "--decoding.max-new-tokens=9"])
    assert (task.data.limit, task.decoding.max_new_tokens, task.decoding.strategy) == (5, 9, "greedy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["diverity"]}, r"metrics.0: unknown name 'diverity'; did you mean 'diversity'\?"),
        (
            {"metrics": ["bleu", {"name": "diversity", "temperatres": [1.0]}]},
            r"unknown key 'metrics.1.diversity.temperatres'; did you mean 'metrics.1.diversity.temperatures'\?",
        ),
        ({"metrics": [{"name": ["bleu"]}]}, r"metrics.0"),
        ({"data": {"source": "x", "promt": "y"}}, r"unknown key 'data.promt'; did you mean 'data.prompt'\?"),
        ({"metrics": ["rogue"]}, "rogue"),
        ({"metrics": []}, "metrics"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        task_of({**MINIMAL, **changes})


def test_an_unknown_task_is_told_the_nearest():
    with pytest.raises(InputError, match=r"no task 'doly'; did you mean dolly\?"):
        load_task("doly")
