"""Each reward gives what it says, whatever the batches, and says what is wrong."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stamina
import torch
from tests.tiny import WORDS, tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from tutelage.errors import InputError
from tutelage.rewards import Reward

SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
PROMPTS, RESPONSES, REFERENCES = ["a b c", "d", "e f g h"], ["a b", "c d e f", "h"], ["a b c", "c d", "e h"]


def write(folder, model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def test_rouge_l_and_exact_answer():
    rouge = Reward().scorer()(PROMPTS, RESPONSES, REFERENCES)
    assert rouge == pytest.approx([0.8, 2 / 3, 2 / 3])
    answer = Reward(kind="exact_answer", answer=r"is (\d+)").scorer()
    assert answer(["", ""], ["it is 4", "it is 5"], ["is 4", "is 4"]) == [1.0, 0.0]


def test_your_own_function():
    reward = Reward(kind="function", function="tests.laws.test_reinforced:worth")
    assert reward.scorer()([""], ["1 2"], [""]) == [((7 * (2 + 9)) % 11) / 5]
    with pytest.raises(InputError, match=r"cannot find tests\.laws.test_reinforced:nothing"):
        Reward(kind="function", function="tests.laws.test_reinforced:nothing").scorer()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_classifier_gives_the_probability_of_the_label_with_the_prompt_as_premise(tmp_path, batch_size):
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    model = write(tmp_path, BertForSequenceClassification(BertConfig(**SIZES, num_labels=3, id2label=labels)))
    reward = Reward(kind="classifier", model=str(tmp_path), label="entailment", batch_size=batch_size, device="cpu")
    found = reward.scorer()(PROMPTS, RESPONSES, REFERENCES)
    for prompt, response, value in zip(PROMPTS, RESPONSES, found, strict=True):
        alone = model(**tokenizer()(prompt, response, return_tensors="pt")).logits[0].softmax(-1)
        assert value == pytest.approx(alone[2].item(), rel=1e-5)
    with pytest.raises(InputError, match="knows contradiction, neutral, entailment"):
        Reward(kind="classifier", model=str(tmp_path), label="entails").scorer()
    with pytest.raises(InputError, match=r"method\.reward\.label is missing"):
        Reward(kind="classifier", model=str(tmp_path)).scorer()
    with pytest.raises(InputError, match=r"method\.reward\.model: cannot load"):
        Reward(kind="classifier", model=str(tmp_path / "nothing"), label="entailment").scorer()


def test_pickled_weights_are_refused(tmp_path):
    model = write(tmp_path, BertModel(BertConfig(**SIZES)))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"method\.reward\.model: cannot load"):
        Reward(kind="similarity", model=str(tmp_path)).scorer()


def test_a_model_with_one_output_gives_that(tmp_path):
    model = write(tmp_path, BertForSequenceClassification(BertConfig(**SIZES, num_labels=1)))
    found = Reward(kind="classifier", model=str(tmp_path), device="cpu").scorer()(["a"], ["b c"], [""])
    alone = model(**tokenizer()("a", "b c", return_tensors="pt")).logits
    assert found == pytest.approx([alone.item()], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_similarity_is_the_cosine_of_mean_embeddings(tmp_path, batch_size):
    model = write(tmp_path, BertModel(BertConfig(**SIZES)))

    def embedding(text: str) -> torch.Tensor:
        return model(**tokenizer()(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    reward = Reward(kind="similarity", model=str(tmp_path), batch_size=batch_size, device="cpu")
    found = reward.scorer()(PROMPTS, RESPONSES, REFERENCES)
    for response, reference, value in zip(RESPONSES, REFERENCES, found, strict=True):
        mine, theirs = embedding(response), embedding(reference)
        assert value == pytest.approx((mine @ theirs / (mine.norm() * theirs.norm())).item(), abs=1e-5)
    assert reward.scorer()([""], ["a b c"], ["a b c"]) == pytest.approx([1.0])
    assert all(map(math.isfinite, reward.scorer()(["", ""], ["", "a b"], ["a", "b"])))


class Endpoint(BaseHTTPRequestHandler):
    """Marks a response by its length; fails as often as it is told to."""

    seen: list[dict]
    failures: list[int]

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers["Authorization"], **request})
        status = self.failures.pop() if self.failures else 200
        question = request["messages"][-1]["content"]
        answer = question.partition("Answer]\n")[2] if "Reference" not in question else question
        marked = answer.partition("[The Start of the Assistant's Answer]\n")[2] or answer
        length = len(marked.partition("\n[The End")[0].split())
        text = f"Score: {length}" if length else "I cannot say."
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    Endpoint.seen, Endpoint.failures = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stamina.set_testing(True, attempts=3)  # no waiting between attempts
    monkeypatch.setenv("TUTELAGE_JUDGE_KEY", "secret")
    yield f"http://127.0.0.1:{server.server_port}/v1"
    stamina.set_testing(False)
    server.shutdown()
    server.server_close()


def test_the_judge_is_asked_and_its_marks_are_in_order(endpoint):
    Endpoint.failures = [500, 429]
    reward = Reward(kind="judge", url=endpoint, model="m", parallel=3)
    assert reward.scorer()(PROMPTS, RESPONSES, REFERENCES) == pytest.approx([0.2, 0.4, 0.1])
    assert len(Endpoint.seen) == 5  # two were tried again
    assert {(s["path"], s["key"], s["model"]) for s in Endpoint.seen} == {
        ("/v1/chat/completions", "Bearer secret", "m")
    }
    asked = Endpoint.seen[-1]["messages"][-1]["content"]
    assert any(f"[Reference Answer]\n{reference}" in asked for reference in REFERENCES)


def test_a_judge_without_a_mark_gives_no_number(endpoint):
    assert math.isnan(Reward(kind="judge", url=endpoint, model="m").scorer()(["a"], [""], [""])[0])


@pytest.mark.parametrize("failures", [[401], [500, 500, 500]])
def test_a_judge_that_refuses_is_reported(endpoint, failures):
    Endpoint.failures = list(failures)
    with pytest.raises(InputError, match=r"the judge at http://127\.0\.0\.1"):
        Reward(kind="judge", url=endpoint, model="m").scorer()(["a"], ["b"], ["c"])
    assert len(Endpoint.seen) == len(failures)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "judge", "url": "http://x"}, "kind 'judge' needs model"),
        ({"kind": "function"}, "kind 'function' needs function"),
        ({"kind": "function", "function": "worth"}, "must be 'module:function'"),
        ({"kind": "rouge_l", "label": "x"}, "label is for classifier, not for kind 'rouge_l'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Reward(**settings)
