"""Lengths, endings and repetition by hand; ROUGE-L in its buckets."""

import pytest
from tests.evaluation.metrics.written import STOP, subject
from tests.tiny import WORDS

from tutelage.errors import InputError
from tutelage.evaluation.metrics.length import Length, RougeByLength, loops, repeated
from tutelage.evaluation.metrics.rouge import Rouge
from tutelage.rollouts.rollout import Rollout


def of_texts(*seeds, **sections):
    """A subject that wrote words of the tiny tokenizer; `.` is the token that stops."""
    ids = [[[STOP if word == "." else WORDS.index(word) for word in text.split()] for text in seed] for seed in seeds]
    rollouts = [Rollout.of([[2]] * len(seed), seed, writer="student") for seed in ids]
    made = subject([[""] * len(seeds[0])] * len(seeds), rollouts=rollouts, **sections)
    return subject([made.texts_of(rollout) for rollout in rollouts], rollouts=rollouts, **sections)


def column(findings, name):
    return [row[0] for row in findings.scores[name].rows.values()]


def test_lengths_endings_and_repetition():
    found = Length(ngram=2).measure(
        of_texts(["a b c .", "a b a b a b", "."], ["a b .", "a a a a a a a a a a a a", "a"])
    )
    assert column(found, "response_tokens") == [3.5, 9, 1]
    assert column(found, "ended") == [100, 0, 50]
    assert column(found, "repeated_ngrams") == pytest.approx([0, 100 * (3 / 5 + 10 / 11) / 2, 0])
    assert column(found, "looping") == [0, 50, 0]
    assert {name: score.better for name, score in found.scores.items()} == {
        "response_tokens": "neither",
        "ended": "neither",
        "repeated_ngrams": "lower",
        "looping": "lower",
    }
    assert list(found.scores["response_tokens"].by_seed) == pytest.approx([11 / 3, 16 / 3])


def test_only_what_stands_before_a_stop_text_is_looked_at():
    made = of_texts(["a b q a b a b a b", "a b a"], stop=["q a"])
    assert list(made.texts[0]) == ["a b", "a b a"]
    found = Length(ngram=2).measure(made)
    assert column(found, "response_tokens") == [2, 3]
    assert column(found, "ended") == [100, 0]
    assert column(found, "repeated_ngrams") == [0, 0]


def test_repetition_against_its_definition():
    ids = [3, 4, 3, 4, 5, 3, 4, 5]
    before = [ids[n : n + 3] in [ids[m : m + 3] for m in range(n)] for n in range(6)]
    assert repeated(ids, 3) == pytest.approx(sum(before) / 6)
    assert repeated([], 4) == 0


@pytest.mark.parametrize("period", [1, 2, 3, 5, 7])
def test_loops_are_found_in_any_phase(period):
    stretch = list(range(period))
    copies = max(3, -(-12 // period))
    for more in range(period):
        looping = [90, 91, *stretch * copies, *stretch[:more]]
        assert loops(looping)
        assert not loops([*looping, 99])
    assert not loops([90, *(stretch * copies)[1:]])


def test_rouge_in_buckets_of_the_first_references_length():
    lengths = (1, 5, 6, 10, 11, 30)
    references = [[" ".join(WORDS[2 + n % 20] for n in range(length)), "z"] for length in lengths]
    references[0].append("long enough for any other bucket of all the three that there are")
    texts = [["a b c"] * 6, ["a", "", "b c", "c d e f g h", "k l m", "z"]]
    made = subject(texts, references)
    found = RougeByLength().measure(made)
    assert list(found.scores) == ["rouge_l_0_to_5_words", "rouge_l_6_to_10_words", "rouge_l_from_11_words"]
    whole = Rouge().measure(made).scores["rouge_l"].rows
    together = {place: row for score in found.scores.values() for place, row in score.rows.items()}
    assert together == whole
    assert [list(score.rows) for score in found.scores.values()] == [
        [f"toy.jsonl:{n}" for n in pair] for pair in ((1, 2), (3, 4), (5, 6))
    ]
    curve = found.curves["rouge_l_by_length"]
    assert (curve.x, curve.n) == ([3, 8, 20.5], [2, 2, 2])
    assert curve.y == [score.measurement().value for score in found.scores.values()]


def test_empty_buckets_are_left_out_and_one_item_works():
    found = RougeByLength(longest=(2, 4)).measure(subject([["x"]], [["a b c"]]))
    assert list(found.scores) == ["rouge_l_3_to_4_words"]
    assert found.curves["rouge_l_by_length"].y == [0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"metric rouge_by_length compares with references"):
        RougeByLength().measure(subject([["a"]]))
    with pytest.raises(ValueError, match="longest must rise"):
        RougeByLength(longest=(5, 5))
