"""Diversity against its definitions, spelt out over toys, and the plot over temperatures with a model that samples."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tests.evaluation.metrics import subjects
from tests.evaluation.metrics.written import subject

from tutelage.errors import InputError
from tutelage.evaluation.metrics.diversity import Diversity, self_bleu
from tutelage.rollouts.texts import response_texts

TEXTS = [["a b a b", "a b", "c", "x y z"], ["a b a", "b c d", "", "x y z"], ["b a", "a b", "c", "x y z"]]


def bigrams(texts):
    return [pair for text in texts for pair in pairwise(text.split())]


def test_distinct_n_of_the_corpus_and_its_jackknife():
    score = Diversity(ngram=2).measure(subject(TEXTS)).scores["distinct_2"]
    samples = list(zip(*TEXTS, strict=True))

    def distinct(items):
        found = [pair for item in items for pair in bigrams(samples[item])]
        return 100 * len(set(found)) / len(found)

    without = [distinct([item for item in range(4) if item != out]) for out in range(4)]
    deviation = math.sqrt(3 / 4 * sum((value - sum(without) / 4) ** 2 for value in without))
    measured = score.measurement()
    assert measured.value == pytest.approx(distinct(range(4)))
    assert measured.value == pytest.approx(100 * 6 / 16)  # ab ba bc cd xy yz
    assert measured.low == pytest.approx(max(0, measured.value - 1.959963984540054 * deviation))
    assert measured.high == pytest.approx(min(100, measured.value + 1.959963984540054 * deviation))
    assert (measured.n, score.better) == (4, "higher")


def test_figures_of_one_prompt():
    scores = Diversity(ngram=2).measure(subject(TEXTS)).scores
    inner = scores["distinct_2_of_prompt"]
    # Without a bigram in any of its samples the third item weighs nothing; it stays, to be paired with other models'.
    assert [row[1] for row in inner.rows.values()] == [1, 1, 0, 1]
    assert [row[0] for row in inner.rows.values()] == pytest.approx([100 * 2 / 6, 100 * 3 / 4, 0, 100 * 2 / 6])
    assert inner.measurement().value == pytest.approx(100 * (2 / 6 + 3 / 4 + 2 / 6) / 3)
    assert [row[0] for row in scores["distinct_outputs"].rows.values()] == [3, 2, 2, 1]
    assert scores["distinct_outputs"].unit == "of 3"
    assert scores["self_bleu"].rows["toy.jsonl:4"][0] == 100


def bleu(text, others):
    """BLEU of a sentence, spelt out; every order has a match."""
    words, orders = text.split(), min(4, len(text.split()))
    logs = 0.0
    for order in range(1, orders + 1):
        counts = [{}, *({} for _ in others)]
        for count, sentence in zip(counts, [text, *others], strict=True):
            parts = sentence.split()
            for start in range(len(parts) - order + 1):
                gram = tuple(parts[start : start + order])
                count[gram] = count.get(gram, 0) + 1
        matches = sum(min(n, max(other.get(gram, 0) for other in counts[1:])) for gram, n in counts[0].items())
        logs += math.log(matches / sum(counts[0].values()))
    nearest = min((len(other.split()) for other in others), key=lambda length: (abs(length - len(words)), length))
    return 100 * math.exp(min(0, 1 - nearest / len(words)) + logs / orders)


def test_self_bleu_is_the_mean_bleu_of_each_against_the_others():
    texts = ["a b c d e f", "a b c d q", "x a b c d e"]
    each = [bleu(text, [other for other in texts if other is not text]) for text in texts]
    assert self_bleu(texts) == pytest.approx(sum(each) / 3)
    assert self_bleu(["a b", "c d", "e f"]) == 0
    assert self_bleu(["same words here"] * 4) == 100
    assert self_bleu(["a", "a"]) == 100
    assert self_bleu(["", "", "a b"]) == pytest.approx(100 * 2 / 3)
    assert self_bleu([" ", "a"]) == 0


@pytest.mark.parametrize("texts", [[[""], [""]], [["a b"], ["a b"]], [["a b c d e"], [""]]])
def test_one_item_works_and_has_no_jackknife(texts):
    measured = Diversity(ngram=2).measure(subject(texts)).scores["distinct_2"].measurement()
    assert math.isnan(measured.low)
    assert math.isnan(measured.high)
    assert measured.n == 1


def test_one_seed_is_refused():
    with pytest.raises(InputError, match=r"one seed.*--seeds 0 1 2 3 4"):
        Diversity().measure(subject([["a"]]))


def sampling(metric, **settings):
    made = subjects.subject(metric, **settings)
    task = replace(made.task, seeds=(3, 4, 5))
    return replace(made, task=task, texts=[[""] * len(made.items)] * 3)


def test_curves_over_temperatures_are_of_samples_at_each():
    metric = Diversity(ngram=2, temperatures=(0.0001, 1.0, 5.0))
    made = sampling(metric)
    curves = metric.measure(made).curves
    diversity, quality = curves["self_bleu_by_temperature"], curves["rouge_l_by_temperature"]
    assert list(diversity.x) == [0.0001, 1.0, 5.0]
    assert diversity.y[0] == 100  # nearly greedy
    assert diversity.y[0] > max(diversity.y[1:])
    plot = curves["rouge_l_by_self_bleu"]
    assert (plot.x, plot.y, plot.x_title, plot.y_title) == (diversity.y, quality.y, "Self-BLEU", "ROUGE-L")
    assert "rouge_2_by_self_bleu" in curves
    decoding = replace(made.task.decoding, strategy="sample", temperature=5.0)
    texts = [response_texts(made.write("", decoding, seed=seed), made.tokenizer) for seed in (3, 4, 5)]
    expected = np.mean([self_bleu(samples) for samples in zip(*texts, strict=True)])
    assert diversity.y[2] == pytest.approx(expected)


def test_without_references_the_plot_has_no_quality():
    metric = Diversity(temperatures=(1.0,))
    items = tuple(replace(item, references=()) for item in subjects.ITEMS)
    curves = metric.measure(sampling(metric, items=items, references=False)).curves
    assert set(curves) == {"self_bleu_by_temperature"}
