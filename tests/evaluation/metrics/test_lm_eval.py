"""The harness on a task of a few lines, and the reading of its results."""

import json

import pytest
from pydantic import ValidationError
from tests.evaluation.metrics.subjects import ITEMS, subject

from tutelage.evaluation.metrics import lm_eval as our_lm_eval
from tutelage.evaluation.metrics.choices import Choices, choice_scores
from tutelage.evaluation.metrics.lm_eval import LmEval, scores_of

TASK = """
task: tutelage_toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.mark.slow
def test_choices_are_those_of_the_harness(tmp_path, monkeypatch) -> None:
    pytest.importorskip("lm_eval", reason="the harness is not installed")
    datasets = pytest.importorskip("datasets", reason="the harness needs datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": item.prompt, "choices": list(item.choices), "answer": item.answer} for item in ITEMS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toy.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    metric = LmEval(tasks=("tutelage_toy",), include_path=str(tmp_path))
    looked_at = subject(metric)
    found = metric.measure(looked_at).scores
    assert set(found) == {"tutelage_toy_acc", "tutelage_toy_acc_norm"}
    for name, normalise in (("tutelage_toy_acc", "none"), ("tutelage_toy_acc_norm", "characters")):
        ours = Choices(normalise=normalise).measure(looked_at).scores["accuracy"]  # pyright: ignore
        theirs = found[name]
        assert [row[0] for row in theirs.rows.values()] == [row[0] / 100 for row in ours.rows.values()]
        assert theirs.measurement().n == len(ITEMS)
        assert theirs.better == "higher"
    assert len({max(scores) for scores in choice_scores(looked_at)}) == len(ITEMS)


def test_results_are_read_with_their_documents_or_their_errors() -> None:
    results = {
        "results": {
            "toy": {
                **{"alias": "toy", "sample_len": 2, "acc,none": 0.5, "acc_stderr,none": 0.4},
                **{"match,strict": 1.0, "match_stderr,strict": 0.0, "bleu,none": 20.0, "bleu_stderr,none": 2.0},
                **{"perplexity,none": 9.0, "perplexity_stderr,none": "N/A"},
            },
            "group": {"acc,none": 0.4, "acc_stderr,none": 0.1, "sample_len": 7},
        },
        "higher_is_better": {"toy": {"acc": True, "perplexity": False}, "group": {"acc": True}},
        "samples": {
            "toy": [
                {"doc_id": 0, "filter": "none", "acc": 1.0, "bleu": ("a", "b"), "perplexity": -2.0},
                {"doc_id": 1, "filter": "none", "acc": 0.0, "bleu": ("a", "b"), "perplexity": -3.0},
                {"doc_id": 0, "filter": "strict", "match": 1.0},
                {"doc_id": 1, "filter": "strict", "match": 1.0},
            ]
        },
    }
    found = dict(scores_of(results))
    assert list(found) == ["toy_acc", "toy_match_strict", "toy_bleu", "toy_perplexity", "group_acc"]
    assert found["toy_acc"].rows == {"toy:0": (1.0, 1.0), "toy:1": (0.0, 1.0)}
    assert found["toy_match_strict"].measurement().value == 1.0
    bleu = found["toy_bleu"].measurement()
    assert (bleu.value, bleu.low, bleu.high, bleu.n) == pytest.approx((20.0, 16.08, 23.92, 2))
    perplexity = found["toy_perplexity"].measurement()
    assert perplexity.value == 9.0
    assert perplexity.low != perplexity.low  # unknown
    assert found["toy_perplexity"].better == "lower"
    assert found["group_acc"].measurement().n == 7
    assert [found[name].better for name in ("toy_acc", "toy_bleu")] == ["higher", "neither"]


def test_where_it_is_not_installed_the_remedy_is_named(monkeypatch) -> None:
    monkeypatch.setattr(our_lm_eval, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"needs the harness: pip install 'tutelage\[lm-eval\]'"):
        LmEval(tasks=("arc_easy",))
