"""Tasks that a metric cannot measure are refused before anything is loaded."""

import pytest
from tests.evaluation.metrics.written import task

from tutelage.errors import InputError
from tutelage.evaluation.assess import assess
from tutelage.evaluation.metrics.entailment import Entailment
from tutelage.evaluation.metrics.rouge import Rouge

WITHOUT = {"source": "no-such-file.jsonl", "reference": None}
JUDGE = {"model": "m", "url": "http://nowhere"}


@pytest.mark.parametrize(
    "metric",
    [
        *[{"name": name} for name in ("rouge", "exact_answer", "bleu", "chrf", "rouge_by_length")],
        {"name": "judge", **JUDGE},
        {"name": "entailment", "model": "m", "premise": "reference"},
    ],
)
def test_without_references(metric, tmp_path):
    with pytest.raises(InputError, match=rf"metric {metric['name']} compares with references.*data\.reference"):
        assess([task(data=WITHOUT, metrics=[metric])], student=None, name="", out=tmp_path)  # pyright: ignore
    assert not list(tmp_path.iterdir())


def test_diversity_of_one_seed(tmp_path):
    with pytest.raises(InputError, match="the task has one seed"):
        assess([task(metrics=[{"name": "diversity"}])], student=None, name="", out=tmp_path)  # pyright: ignore


def test_what_needs_no_references_passes():
    Entailment(model="m").check(task(data=WITHOUT))
    Rouge().check(task())


def test_the_protocol_is_all_settings():
    assert Rouge(stemmer=False).protocol() == {"name": "rouge", "stemmer": False}
