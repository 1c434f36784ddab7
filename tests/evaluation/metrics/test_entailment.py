"""Entailment is the classifier's own probability for each pair, whatever the batches."""

import pytest
import torch
from tests.evaluation.metrics.written import subject
from tests.tiny import WORDS, tokenizer
from transformers import BertConfig, BertForSequenceClassification

from tutelage.errors import InputError
from tutelage.evaluation.metrics.entailment import Entailment

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LABELS = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
PROMPTS, TEXTS = ["a b c", "d"], [["a b", ""], ["c d e f", "h"]]


@pytest.fixture
def classifier(tmp_path):
    model = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **SIZES, num_labels=3, id2label=LABELS))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    model.eval().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return model


def probability(model, premise, hypothesis):
    inputs = tokenizer()(premise, hypothesis, return_tensors="pt")
    return 100 * model(**inputs).logits[0].double().softmax(-1)[1].item()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_it_is_the_probability_of_the_label_with_the_prompt_as_premise(classifier, tmp_path, batch_size):
    metric = Entailment(model=str(tmp_path), batch_size=batch_size, device="cpu")
    score = metric.measure(subject(TEXTS, prompts=PROMPTS)).scores["entailment"]
    each = [[probability(classifier, p, text) for p, text in zip(PROMPTS, texts, strict=True)] for texts in TEXTS]
    assert [row[0] for row in score.rows.values()] == pytest.approx([sum(pair) / 2 for pair in zip(*each, strict=True)])
    assert list(score.by_seed) == pytest.approx([sum(row) / 2 for row in each])


def test_the_reference_may_be_the_premise(classifier, tmp_path):
    metric = Entailment(model=str(tmp_path), premise="reference", device="cpu")
    score = metric.measure(subject([["a"]], [["e f", "g"]])).scores["entailment"]
    assert score.measurement().value == pytest.approx(probability(classifier, "e f", "a"))
    with pytest.raises(InputError, match=r"metric entailment compares with references"):
        metric.measure(subject([["a"]]))


def test_what_the_classifier_lacks_is_told(classifier, tmp_path):
    with pytest.raises(
        InputError, match=r"metric entailment\.label 'entails': .* knows contradiction, entailment, neutral"
    ):
        Entailment(model=str(tmp_path), label="entails").measure(subject(TEXTS))
    with pytest.raises(InputError, match=r"metric entailment\.model: cannot load"):
        Entailment(model=str(tmp_path / "nothing")).measure(subject(TEXTS))


def test_the_protocol_knows_the_weights_and_not_where_they_lie(classifier, tmp_path):
    before = Entailment(model=str(tmp_path)).protocol()
    assert Entailment(model=f"{tmp_path}/.", batch_size=2, device="cpu").protocol() == before
    torch.nn.init.zeros_(classifier.classifier.weight)
    classifier.save_pretrained(tmp_path)
    assert Entailment(model=str(tmp_path)).protocol() != before
    assert Entailment(model=str(tmp_path), label="neutral").protocol()["label"] == "neutral"
