"""The judge is asked in both orders, once for each question, and its marks become what the formulas say."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stamina
from tests.evaluation.metrics.written import subject

from tutelage.errors import InputError
from tutelage.evaluation.metrics.judge import Judge, JudgePairwise, comparison, marks_in

PARTS = re.compile(r"\[The Start of Assistant [12]'s Answer\]\n(.*?)\n\n\[The End", re.DOTALL)


class Endpoint(BaseHTTPRequestHandler):
    """Marks an answer by its number of words, one more for the one that is shown first; some replies are of its own."""

    asked: list[str]
    failures: list[int]
    bonus: int
    body: bytes | None

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = request["messages"][-1]["content"]
        self.asked.append(question)
        first, second = (min(10, 1 + len(answer.split())) for answer in PARTS.findall(question))
        text = (
            "I would rather not." if "secret" in question else f"{min(10, first + self.bonus)} {second}\nSince 1 2 3."
        )
        answer = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}
        self.send_response(self.failures.pop() if self.failures else 200)
        self.end_headers()
        self.wfile.write(self.body or json.dumps(answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def settings(tmp_path):
    Endpoint.asked, Endpoint.failures, Endpoint.bonus, Endpoint.body = [], [], 1, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    stamina.set_testing(True, attempts=3)  # no waiting between attempts
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield {"model": "m", "url": url, "replies": str(tmp_path / "kept" / "replies.jsonl")}
    stamina.set_testing(False)
    server.shutdown()
    server.server_close()


TEXTS = [["a b c", "", "a b c d"], ["a", "a b", "x"]]
REFERENCES = [["a b"], ["a b c d e"], ["a"]]


def test_marks_relative_to_the_references(settings):
    found = Judge(**settings).measure(subject(TEXTS, REFERENCES))
    # Each text gets 1 + its words in both orders, and 1 more in the order in which it is first.
    mine = [[4, 1, 5], [2, 3, 2]]
    theirs = [3, 6, 2]
    totals = [sum(2 * mark + 1 for mark in row) for row in mine]
    reference = sum(2 * mark + 1 for mark in theirs)
    assert found.scores["judge"].measurement().value == pytest.approx(100 * sum(totals) / (2 * reference))
    assert list(found.scores["judge"].by_seed) == pytest.approx([100 * total / reference for total in totals])
    assert found.scores["judge_mark"].measurement().value == pytest.approx(sum(totals) / 12)
    assert found.scores["judge_reference_mark"].measurement().value == pytest.approx(reference / 6)
    assert len(Endpoint.asked) == 12


def test_the_wording_is_vicunas_and_both_orders_are_asked(settings):
    Judge(**settings).measure(subject([["mine"]], [["theirs"]], prompts=["Why?"]))
    assert {tuple(PARTS.findall(question)) for question in Endpoint.asked} == {("mine", "theirs"), ("theirs", "mine")}
    question = comparison("Why?", "mine", "theirs")[1]["content"]
    assert question in Endpoint.asked
    assert question.startswith(
        "[Question]\nWhy?\n\n[The Start of Assistant 1's Answer]\nmine\n\n[The End of Assistant 1's"
    )
    assert "output a single line containing only two values" in question


def test_replies_are_kept_and_calls_tokens_and_cost_are_told(settings, tmp_path):
    metric = Judge(**settings, prompt_price=2.0, completion_price=10.0)
    made = subject([["a", "a"]], [["b"], ["b"]], prompts=["same", "same"])
    first = metric.measure(made)
    assert "4 questions, 2 calls now" in first.notes[1]
    assert first.notes[1].endswith(f"200 + 14 tokens, which cost {(200 * 2 + 14 * 10) / 1e6:.4f}")
    file = tmp_path / "kept" / "replies.jsonl"
    file.write_bytes(file.read_bytes() + b'{"key": "cut sh')  # as a kill leaves it
    again = metric.measure(made)
    assert again.scores["judge"].rows == first.scores["judge"].rows
    assert "4 questions, 0 calls now" in again.notes[1]
    metric.measure(subject([["a c"]], [["b"]], prompts=["same"]))
    assert len(Endpoint.asked) == 4
    Judge(**{**settings, "model": "another"}).measure(made)
    assert len(Endpoint.asked) == 6
    lines = file.read_text().splitlines()
    kept = [json.loads(line) for line in lines if not line.endswith("cut sh")]
    assert (len(kept), len(lines)) == (6, 7)
    assert kept[0]["messages"][1]["content"] in Endpoint.asked


def test_items_without_marks_are_left_out_and_told(settings):
    found = Judge(**settings).measure(subject([["a", "secret"], ["b", "c"]], [["d"], ["e"]]))
    rows = found.scores["judge"].rows
    assert list(rows) == ["toy.jsonl:1", "toy.jsonl:2"]  # it stays, to be paired with another model's, without weight
    assert rows["toy.jsonl:2"] == (0, 0)
    assert found.scores["judge"].measurement().value == pytest.approx(100)
    assert found.scores["judge_mark"].measurement().value == pytest.approx(2.5)
    assert found.notes[-1] == "judge: 1 of 2 items left out, for a reply without two marks"
    with pytest.raises(InputError, match="for no item do all replies of m hold two marks"):
        Judge(**settings).measure(subject([["secret"]], [["d"]]))


def others(folder, texts, prompts=("prompt 0", "prompt 1", "prompt 2", "prompt 3")):
    path = folder / "evaluations" / "toy.responses.jsonl"
    path.parent.mkdir(parents=True)
    lines = [
        {"item": f"toy.jsonl:{n + 1}", "seed": seed, "prompt": prompts[n], "response": text}
        for seed, row in enumerate(texts)
        for n, text in enumerate(row)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"written_with": "x"}, *lines]))
    return str(folder)


def test_pairs_won_lost_and_tied_where_the_orders_disagree(settings, tmp_path):
    Endpoint.bonus = 2
    folder = others(tmp_path / "other", [["a", "a b c d", "a b", "a b c"]])
    metric = JudgePairwise(**settings, against=folder)
    found = metric.measure(subject([["a b c d", "a", "a b", "a b c d"]]))
    rows = {name: [row[0] for row in score.rows.values()] for name, score in found.scores.items()}
    # Four words against one win in both orders; even ones, or one word apart, go by who is first.
    assert rows == {
        "judge_wins": [100, 0, 0, 0],
        "judge_losses": [0, 100, 0, 0],
        "judge_ties": [0, 0, 100, 100],
        "judge_orders_disagree": [0, 0, 100, 100],
    }
    Endpoint.bonus = 0
    even = {**settings, "model": "fair"}
    found = JudgePairwise(**even, against=folder).measure(subject([["a", "a b", "x y", "c"]]))
    assert [row[0] for row in found.scores["judge_ties"].rows.values()] == [100, 0, 100, 0]
    assert found.scores["judge_orders_disagree"].measurement().value == 0


def test_pairs_need_the_same_items_and_seeds(settings, tmp_path):
    folder = others(tmp_path / "other", [["a", "b"]])
    metric = JudgePairwise(**settings, against=folder)
    with pytest.raises(InputError, match=r"lacks 2 of 4 responses to these items at seeds \[0, 1\]"):
        metric.measure(subject([["a", "b"], ["a", "b"]]))
    with pytest.raises(InputError, match="lacks 1 of 2 responses"):
        metric.measure(subject([["a", "b"]], prompts=["prompt 0", "changed"]))
    with pytest.raises(InputError, match=r"evaluate .*nowhere on task toy first"):
        JudgePairwise(**settings, against=str(tmp_path / "nowhere")).measure(subject([["a"]]))


def test_failing_requests_are_tried_again_and_refusals_are_told(settings):
    made = subject([["a"]], [["b"]])
    Endpoint.failures = [500, 429]
    assert Judge(**settings).measure(made).scores["judge"].measurement().value == 100
    assert len(Endpoint.asked) == 4
    Endpoint.failures = [401] * 2
    with pytest.raises(InputError, match=r"metric judge: the judge at http://127\.0\.0\.1.* does not answer"):
        Judge(**{**settings, "model": "other"}).measure(made)
    Endpoint.failures, Endpoint.body = [], b'{"object": "list"}'
    with pytest.raises(InputError, match="answers otherwise than OpenAI's chat completions"):
        Judge(**{**settings, "model": "other"}).measure(made)


def test_a_task_without_references_is_refused(settings):
    with pytest.raises(InputError, match="metric judge compares with references"):
        Judge(**settings).measure(subject([["a"]]))
    assert not Endpoint.asked


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("8 9\nwords", (8, 9)),
        ("\n 7.5 10", (7.5, 10)),
        ("Assistant 1: 8/10, Assistant 2: 7/10", (8, 7)),
        ("8, 9", (8, 9)),
        ("0 5", None),
        ("8 11", None),
        ("8", None),
        ("8 9 7", None),
        ("-8 9", None),
        ("", None),
        ("none\n8 9", None),
    ],
)
def test_marks_are_read_from_the_first_line(text, marks):
    assert marks_in(text) == marks


def test_the_protocol_is_who_judges_not_how_it_is_reached(settings, tmp_path):
    protocol = Judge(**settings).protocol()
    assert (
        Judge(**{**settings, "url": "http://elsewhere/v1", "parallel": 2, "prompt_price": 1.0}).protocol() == protocol
    )
    assert Judge(**{**settings, "model": "other"}).protocol() != protocol
