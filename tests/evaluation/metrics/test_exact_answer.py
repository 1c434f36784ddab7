"""Answers are read, recomputed and compared as the settings say."""

import pytest
from tests.evaluation.metrics.written import subject

from tutelage.errors import InputError
from tutelage.evaluation.metrics.exact_answer import ExactAnswer, as_number

RULE = r"answer is \$?(-?[\d,.]*\d)"


def right(texts, references, **settings):
    score = ExactAnswer(**settings).measure(subject([texts], references)).scores["exact_answer"]
    return [row[0] == 100 for row in score.rows.values()]


def test_whole_texts_and_any_of_several_references():
    assert right(["yes ", "no", ""], [["no", "yes"], ["yes"], ["yes"]]) == [True, False, False]


def test_the_last_match_is_the_answer():
    texts = ["The answer is 3. No, the answer is 4.", "The answer is 4, I think", "4"]
    assert right(texts, [["the answer is 4"]] * 3, answer=RULE) == [True, True, False]


def test_numbers_as_numbers():
    texts = ["1,000", "1000.0", "$1000", "1000.", "1000.5", "+1000", "1,0,00", "-1000"]
    assert right(texts, [["1000"]] * 8) == [False] * 8
    assert right(texts, [["1000"]] * 8, numeric=True) == [True, True, True, True, False, True, False, False]
    assert right(["about 7", "seven"], [["about 7"], ["7"]], numeric=True) == [True, False]
    assert [as_number(text) for text in ("", ".", "-")] == ["", ".", "-"]
    assert as_number(".50") == as_number("0.5")
    assert as_number("9" * 10_000) == "9" * 10_000


def test_the_calculator_works_on_the_response_alone_and_says_what_it_did():
    texts = ["3 + 4 = 8. 8 * 2 = 16. The answer is 16.", "The answer is 14"]
    references = [["5 + 5 = 14, the answer is 14"]] * 2
    assert right(texts, references, answer=RULE) == [False, True]
    assert right(texts, references, answer=RULE, calculator=True) == [True, True]
    found = ExactAnswer(answer=RULE, calculator=True).measure(subject([texts, ["", ""]], references))
    assert found.notes == ["the calculator mended 2 equations in 1 of 4 responses"]
    assert list(found.scores["exact_answer"].by_seed) == [100, 0]


def test_references_without_an_answer_are_told():
    found = ExactAnswer(answer=RULE).measure(subject([["the answer is 3", "none"]], [["the answer is 3"], ["none"]]))
    assert found.scores["exact_answer"].measurement().value == 50
    assert found.notes == ["no answer is found in the references of 1 of 2 items; no response is right there"]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match=r"metric exact_answer compares with references.*data\.reference"):
        ExactAnswer().measure(subject([["a"]]))
    with pytest.raises(InputError, match="metric exact_answer, answer: '3' has no group"):
        ExactAnswer(answer="3").measure(subject([["a"]], [["a"]]))
