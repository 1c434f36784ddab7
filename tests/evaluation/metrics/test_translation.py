"""BLEU and chrF are sacrebleu's, for the whole corpus and for any resample of it."""

import numpy as np
import pytest
import sacrebleu
from tests.evaluation.metrics.written import subject

from tutelage.errors import InputError
from tutelage.evaluation.metrics.translation import Bleu, Chrf
from tutelage.evaluation.score import resampled

REFERENCES = [
    ["The cat sat on the mat.", "A cat was sitting on a mat, quietly."],
    ["He doesn't know; nobody does."],
    ["Zwei Hunde laufen über die Straße.", "Über die Straße laufen zwei Hunde.", "Es laufen zwei Hunde."],
    ["yes"],
    ["a b c d e f g h"],
]
TEXTS = [
    ["the cat sat on a mat .", "He doesn't know, nobody does it.", "Zwei Hunde laufen.", "", "a b c d e f g h"],
    ["A cat sat there", "nobody does know", "Über die Straße laufen viele Hunde!", "yes", "h g f e d c b a"],
]
SETTINGS = [
    (Bleu(), {}),
    (Bleu(lowercase=True, tokenize="intl"), {"lowercase": True, "tokenize": "intl"}),
    (Bleu(tokenize="char", max_ngram_order=2), {"tokenize": "char", "max_ngram_order": 2}),
    (Chrf(), {}),
    (Chrf(word_order=2, lowercase=True), {"word_order": 2, "lowercase": True}),
]


def theirs(metric, options, texts, references):
    kind = sacrebleu.BLEU if metric.name == "bleu" else sacrebleu.CHRF
    most = max(map(len, references))
    columns = [[right[n] if n < len(right) else None for right in references] for n in range(most)]
    return kind(**options).corpus_score(texts, columns).score  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("metric", "options"), SETTINGS)
def test_the_corpus_and_its_resamples_are_sacrebleus(metric, options):
    score = metric.measure(subject(TEXTS, REFERENCES)).scores[metric.name]
    each = [theirs(metric, options, texts, REFERENCES) for texts in TEXTS]
    assert list(score.by_seed) == pytest.approx(each, abs=1e-9)
    assert score.measurement().value == pytest.approx(np.mean(each), abs=1e-9)
    rows = np.asarray(list(score.rows.values()))
    draws = resampled(len(rows))[:40]
    found = score.value_of(draws @ rows)
    for counts, value in zip(draws, found, strict=True):
        picked = [row for row, count in enumerate(counts) for _ in range(int(count))]
        expected = [
            theirs(metric, options, [texts[n] for n in picked], [REFERENCES[n] for n in picked]) for texts in TEXTS
        ]
        assert value == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize(
    ("texts", "references"), [([""], [["a b"]]), (["a b"], [[""]]), (["a"], [["a"]]), (["q"], [["a b c d"]])]
)
@pytest.mark.parametrize("metric", [Bleu(), Chrf()])
def test_one_item_and_texts_without_matches(metric, texts, references):
    measured = metric.measure(subject([texts], references)).scores[metric.name].measurement()
    assert measured.value == pytest.approx(theirs(metric, {}, texts, references), abs=1e-9)
    assert measured.n == 1


def test_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3, 1 of 2; five words against six.
    found = Bleu().measure(subject([["a b c d x"]], [["a b c d e f"]])).scores["bleu"].measurement().value
    assert found == pytest.approx(100 * np.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # ab / ac: 1 of 2 characters each, no pair of characters in common: means (1/2 + 0) / 2.
    found = Chrf().measure(subject([["ab"]], [["ac"]])).scores["chrf"].measurement().value
    assert found == pytest.approx(25)


def test_the_signature_is_told():
    notes = Bleu(lowercase=True).measure(subject(TEXTS, REFERENCES)).notes
    assert notes[0].startswith("sacrebleu signature: nrefs:var|case:lc|eff:no|tok:13a|smooth:exp|version:")
    notes = Chrf().measure(subject([TEXTS[0][3:]], REFERENCES[3:])).notes
    assert notes[0].startswith("sacrebleu signature: nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


@pytest.mark.parametrize("metric", [Bleu(), Chrf()])
def test_a_task_without_references_is_refused(metric):
    with pytest.raises(InputError, match=rf"metric {metric.name} compares with references"):
        metric.measure(subject(TEXTS))
