"""ROUGE by hand and by the package, over several references, seeds and empty responses."""

import pytest
from rouge_score import rouge_scorer
from tests.evaluation.metrics.written import subject

from tutelage.errors import InputError
from tutelage.evaluation.metrics.rouge import Rouge


def value(findings, name):
    return findings.scores[name].measurement().value


def test_by_hand():
    # the cat sat on the mat / the cat lay on a mat: 4 of 6 and 6 words in common (the, cat, on, mat), bigram "the cat"
    # alone of 5 and 5, longest common subsequence the cat on mat.
    found = Rouge().measure(subject([["the cat lay on a mat"]], [["the cat sat on the mat"]]))
    assert value(found, "rouge_1") == pytest.approx(100 * 4 / 6)
    assert value(found, "rouge_2") == pytest.approx(100 * 1 / 5)
    assert value(found, "rouge_l") == pytest.approx(100 * 4 / 6)


def test_order_counts_for_the_longest_common_subsequence_only():
    found = Rouge().measure(subject([["d c b a"]], [["a b c d"]]))
    assert (value(found, "rouge_1"), value(found, "rouge_2"), value(found, "rouge_l")) == (100, 0, 25)


def test_the_best_of_several_references_for_each_kind_and_the_mean_over_items_and_seeds():
    references = [["a b c d e f", "e d c b a"], ["x y z"]]
    texts = [["e d c b a q", "x y"], ["a b c", ""]]
    found = Rouge(stemmer=False).measure(subject(texts, references))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, kind in {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}.items():
        seeds = [
            [
                max(scorer.score(r, text)[kind].fmeasure for r in right)
                for right, text in zip(references, row, strict=True)
            ]
            for row in texts
        ]
        assert list(found.scores[name].by_seed) == pytest.approx([100 * sum(row) / 2 for row in seeds])
        assert value(found, name) == pytest.approx(100 * sum(map(sum, seeds)) / 4)


def test_stemming_is_a_switch():
    texts, references = [["cats running"]], [["cat runs"]]
    assert value(Rouge().measure(subject(texts, references)), "rouge_1") == 100
    assert value(Rouge(stemmer=False).measure(subject(texts, references)), "rouge_1") == 0


def test_one_empty_response_is_worth_nothing():
    found = Rouge().measure(subject([[""]], [["a"]]))
    measured = found.scores["rouge_l"].measurement()
    assert (measured.value, measured.low, measured.n) == (0, 0, 1)


def test_a_task_without_references_is_refused():
    with pytest.raises(InputError, match=r"metric rouge compares with references.*data\.reference"):
        Rouge().measure(subject([["a"]]))
