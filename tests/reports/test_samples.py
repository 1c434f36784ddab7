"""Samples say what each model writes, and compare the student with the teacher on the student's own text."""

import pytest
import torch
from tests import tiny
from tests.reports.test_token_view import expected, llama

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.reports.samples import Look, look_at

VOCABULARY, LENGTH = 22, 5


@torch.no_grad()
def greedy(model, prompt) -> tuple[int, ...]:
    ids = list(prompt)
    while len(ids) < len(prompt) + LENGTH and ids[-1] != 1:
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1, :VOCABULARY].argmax()))
    return tuple(ids[len(prompt) :])


def test_each_model_answers_and_the_student_s_answer_is_compared() -> None:
    student, teacher, tokenizer = llama(1), llama(2, vocabulary=30), tiny.tokenizer()
    writer = LanguageModel(teacher, (1,))
    examples = [Example(row, "", prompt, (), (), "", "") for row, prompt in enumerate([(2, 3, 4), (5, 6), (7,)])]
    look = Look(Decoding(strategy="greedy", max_new_tokens=LENGTH), rows=2, vocabulary=VOCABULARY)
    found = look_at(
        LanguageModel(student, (1,)), LocalTeacher(writer, torch.device("cpu")), writer, examples, tokenizer, look
    )
    assert len(found) == 2
    for sample, example in zip(found, examples, strict=False):
        own, theirs = greedy(student, example.prompt), greedy(teacher, example.prompt)
        assert own != theirs
        assert sample.student == tokenizer.decode(own, skip_special_tokens=True)
        assert sample.teacher == tokenizer.decode(theirs, skip_special_tokens=True)
        laws = [expected(model, example.prompt, own, VOCABULARY) for model in (student, teacher)]
        wanted = [[law[place, token].item() for place, token in enumerate(own)] for law in laws]
        assert [token.student_logp for token in sample.tokens] == pytest.approx(wanted[0], abs=1e-5)
        assert [token.teacher_logp for token in sample.tokens] == pytest.approx(wanted[1], abs=1e-5)
