"""A served teacher says what the same teacher says in this process, or what its top-k cache says."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.servers.conftest import here, spec
from tests.servers.reference import Reference, changed, running, status

from tutelage import divergences
from tutelage.errors import InputError
from tutelage.losses import Scores
from tutelage.models.cached_teacher import TopKTeacher
from tutelage.models.capture import plan_capture
from tutelage.models.kept_scores import TopK
from tutelage.models.score_store import ScoreStore
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.teachers import LocalTeacher, Teacher
from tutelage.rollouts.rollout import Rollout

SIZE = len(tiny.WORDS)
TEXT = Rollout.of(
    [[3, 4, 5], [6], [7, 8, 9], [2]],
    [[9, 10, 1], [11, 12, 13, 14, 1, 15], [16, 17, 3, 1], [4, 5]],
    masks=[[True] * 3, [True, False, False, True, True, False], [False, True, True, True], [False, False]],
)
NAMES = ("forward_kl", "reverse_kl", "jsd(0.3)", "total_variation", "skew_forward_kl(0.1)")


def compared(teacher: Teacher, folder: Path, divergence, text: Rollout = TEXT, **options) -> tuple[Scores, list]:
    """Scores, and the gradient of the student's weights."""
    student = here(folder, "llama-student")
    student.network.requires_grad_(True)
    options = {"coefficients": torch.rand(text.positions, generator=torch.Generator().manual_seed(3)), **options}
    targets = torch.tensor(text.targets)
    scores = teacher.compare(student.hidden(text), student.head, text, divergence, targets=targets, **options)
    scores.total.backward()
    return scores, [p.grad for p in student.network.parameters() if p.grad is not None]


@pytest.mark.parametrize("divergence", NAMES)
def test_all_tokens_served_are_the_teacher_in_this_process(folder: Path, server: Reference, divergence: str) -> None:
    local, served = LocalTeacher(here(folder, "llama-teacher")), ServedTeacher(spec(folder, server))
    weights = {"cross_entropy": torch.full((TEXT.positions,), 0.3)}
    one, its_gradient = compared(served, folder, divergence, **weights)
    two, gradient = compared(local, folder, divergence, **weights)
    torch.testing.assert_close(one.total, two.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.divergence, two.divergence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.teacher_logp, two.teacher_logp, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert len(gradient) == len(its_gradient) > 10
    for found, expected in zip(its_gradient, gradient, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", NAMES)
def test_eight_tokens_served_are_the_top_k_cache(
    tmp_path: Path, folder: Path, server: Reference, divergence: str
) -> None:
    local, store = LocalTeacher(here(folder, "llama-teacher")), ScoreStore(tmp_path, {})
    plan_capture(TEXT, store, 100.0).run(store, local, TopK(1.0, 8, SIZE), 10_000)
    cached = TopKTeacher(ScoreStore(tmp_path, {}), torch.device("cpu"))
    one, its_gradient = compared(ServedTeacher(spec(folder, server, top_k=8)), folder, divergence)
    two, gradient = compared(cached, folder, divergence)
    torch.testing.assert_close(one.divergence, two.divergence, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.teacher_logp, two.teacher_logp, rtol=1e-5, atol=1e-6, check_dtype=False)
    for found, expected in zip(its_gradient, gradient, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_it_says_is_the_definition(folder: Path, server: Reference) -> None:
    """Forward KL between the teacher's three best tokens and the rest, from both models' logits."""
    text = Rollout.of([[3, 4, 5]], [[9, 10, 1]])
    found, _ = compared(ServedTeacher(spec(folder, server, top_k=3)), folder, "forward_kl", text)
    logits = [
        here(folder, name).network(torch.tensor([[3, 4, 5, 9, 10, 1]])).logits[0, 2:5]
        for name in ("llama-student", "llama-teacher")
    ]
    student, teacher = (one.softmax(-1) for one in logits)
    for place in range(3):
        best = teacher[place].topk(3).indices
        coarse = [
            torch.cat([one[place][best], 1 - one[place][best].sum(0, keepdim=True)]) for one in (student, teacher)
        ]
        expected = divergences.forward_kl(coarse[0].log(), coarse[1].log())
        assert found.divergence is not None
        torch.testing.assert_close(found.divergence[place], expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_tokens_that_the_student_lacks_are_taken_out(folder: Path, server: Reference) -> None:
    """The teacher's distribution is that over the shared ids, as with a teacher in this process."""
    local, served = LocalTeacher(here(folder, "llama-teacher")), ServedTeacher(spec(folder, server))
    text = Rollout.of([[3, 4, 5]], [[9, 10, 1]])
    one, _ = compared(served, folder, "reverse_kl", text, vocabulary=17)
    two, _ = compared(local, folder, "reverse_kl", text, vocabulary=17)
    torch.testing.assert_close(one.divergence, two.divergence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.teacher_logp, two.teacher_logp, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_what_is_asked(folder: Path, server: Reference) -> None:
    teacher = ServedTeacher(spec(folder, server, top_k=4))
    server.requests.clear()
    ids, logp, target = teacher.scores(TEXT, SIZE)
    assert ids.shape == logp.shape == (TEXT.positions, 4)
    assert target.shape == (TEXT.positions,)
    prompts = sorted(request["prompt"] for request in server.requests)
    # Nothing behind the last token in the loss, and no sequence without one.
    assert prompts == [[3, 4, 5, 9, 10, 1], [6, 11, 12, 13, 14, 1], [7, 8, 9, 16, 17, 3, 1]]
    assert all(request["prompt_logprobs"] == 4 and request["max_tokens"] == 1 for request in server.requests)
    nothing = teacher.scores(TEXT.select([3]), SIZE)
    assert [len(column) for column in nothing] == [0, 0, 0]


def test_what_was_asked_ahead_is_not_asked_again(folder: Path, server: Reference) -> None:
    teacher = ServedTeacher(spec(folder, server, top_k=4))
    expected = teacher.scores(TEXT, SIZE)
    server.requests.clear()
    before = teacher.seconds
    teacher.ask_ahead(TEXT, SIZE, wait=True)
    assert len(server.requests) == 3
    assert teacher.seconds > before > 0
    server.always = status(400)
    parts = [teacher.scores(TEXT.select(rows), SIZE) for rows in ([0, 3], [1, 2])]
    for found, wanted in zip(zip(*parts, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(found), wanted)
    for unknown, vocabulary in ((TEXT.select([0]), SIZE - 1), (Rollout.of([[3]], [[4, 5]]), SIZE)):
        teacher.ask_ahead(TEXT, SIZE)
        with pytest.raises(InputError, match="status 400"):
            teacher.scores(unknown, vocabulary)
    server.always = None
    teacher.ask_ahead(TEXT, SIZE, wait=True)
    server.requests.clear()
    teacher.ask_ahead(TEXT.select([1, 1]), SIZE, wait=True)
    assert not server.requests, "what is known was asked again"
    teacher.scores(TEXT.select([0]), SIZE)
    assert len(server.requests) == 1, "what an earlier step asked about is kept"


class Holding(Reference):
    """It answers about one text only when it may."""

    may = False

    async def _completions(self, request):
        while (await request.json())["prompt"][:1] == [6] and not self.may:
            await asyncio.sleep(0.005)
        return await super()._completions(request)


def test_the_server_works_while_the_student_does(folder: Path) -> None:
    with running(Holding(folder / "llama-teacher")) as server:
        teacher = ServedTeacher(spec(folder, server))
        expected = LocalTeacher(here(folder, "llama-teacher"))
        teacher.ask_ahead(TEXT, SIZE)
        teacher.scores(TEXT.select([0, 2]), SIZE)  # the held one is asked about, and nobody waits for it
        begun = time.monotonic()
        threading.Timer(0.3, lambda: setattr(server, "may", True)).start()
        found = teacher.scores(TEXT.select([1]), SIZE)[1]
        assert time.monotonic() - begun > 0.2
        logits = expected.head.logits(expected.hidden(TEXT.select([1])))
        torch.testing.assert_close(
            found, logits.log_softmax(-1).sort(descending=True).values, rtol=1e-5, atol=1e-5, check_dtype=False
        )
        server.may, begun = False, time.monotonic()
        teacher.ask_ahead(Rollout.of([[6, 7]], [[8, 9]]), SIZE)
        assert time.monotonic() - begun < 5  # a request that is waited for takes 10
        threading.Timer(0.3, lambda: setattr(server, "may", True)).start()
        teacher.ask_ahead(Rollout.of([[6, 7]], [[8, 9]]), SIZE, wait=True)
        assert time.monotonic() - begun > 0.2


def test_an_error_among_what_was_asked_ahead_comes_before_slow_answers(folder: Path) -> None:
    with running(Holding(folder / "llama-teacher")) as server:
        teacher = ServedTeacher(spec(folder, server, patience=60.0))
        server.faults, begun = [status(400), None], time.monotonic()
        teacher.ask_ahead(TEXT, SIZE)
        with pytest.raises(InputError, match="status 400"):
            teacher.scores(TEXT, SIZE)
        assert time.monotonic() - begun < 9
        server.may = True
        teacher.scores(TEXT, SIZE)  # nothing of before stands in the way


def test_a_micro_batch_is_sent_at_once_and_never_more_than_asked(folder: Path, server: Reference) -> None:
    text = Rollout.of([[3, 4, last % 20 + 2, last // 20 + 2] for last in range(24)], [[5, 1]] * 24)
    for concurrency in (3, 12):
        teacher = ServedTeacher(spec(folder, server, concurrency=concurrency))
        server.most_at_once = 0
        teacher.scores(text, SIZE)
        assert 1 < server.most_at_once <= concurrency
    assert server.most_at_once > 3


def test_tokens_below_the_floor_have_no_probability(folder: Path, server: Reference) -> None:
    """vLLM writes −9999 for minus infinity."""

    def floor(listed: list) -> None:
        for entry in listed[1:]:
            entry["3"]["logprob"] = -9999.0

    teacher = ServedTeacher(spec(folder, server))
    server.always = changed(floor)
    text = Rollout.of([[4, 5]], [[6, 7]])
    ids, logp, _ = teacher.scores(text, SIZE)
    assert (ids == 3).sum() == 0
    assert (ids == -1).sum() == torch.isinf(logp).sum() == text.positions


def test_weights_and_states_are_not_there(folder: Path, server: Reference) -> None:
    teacher = ServedTeacher(spec(folder, server))
    assert teacher.model is None
    with pytest.raises(InputError, match="neither its weights nor its hidden states"):
        teacher.hidden(TEXT)
    with pytest.raises(InputError, match="neither its weights nor its hidden states"):
        teacher.head  # noqa: B018


def test_the_key_comes_from_the_environment(folder: Path, server: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVERS_KEY", "abc-secret")
    ServedTeacher(spec(folder, server, key_variable="MY_SERVERS_KEY"))
    assert server.headers[-1]["authorization"] == "Bearer abc-secret"
    ServedTeacher(spec(folder, server, key_variable="NOT_SET_ANYWHERE"))
    assert "authorization" not in server.headers[-1]


class TestProbes:
    """What is found out before a run."""

    def test_another_model(self, folder: Path, server: Reference) -> None:
        with pytest.raises(InputError, match="does not serve 'big', but tiny-teacher"):
            ServedTeacher(spec(folder, server, model="big"))

    def test_fewer_tokens_than_wanted(self, folder: Path) -> None:
        with running(Reference(folder / "llama-teacher", max_logprobs=5)) as server:
            ServedTeacher(spec(folder, server, top_k=5))
            with pytest.raises(InputError, match=r"Requested prompt logprobs of 8.*--max-logprobs 8"):
                ServedTeacher(spec(folder, server, top_k=8))

    def test_a_silent_cap(self, folder: Path, server: Reference) -> None:
        server.always = changed(lambda listed: [entry and dict(list(entry.items())[:5]) for entry in listed])
        with pytest.raises(InputError, match=r"no more than 5 tokens at a position, and teacher.top_k is 8"):
            ServedTeacher(spec(folder, server, top_k=8))

    @pytest.mark.parametrize("missing", [[None, None], []])
    def test_no_log_probabilities_of_prompts(self, folder: Path, server: Reference, missing: list) -> None:
        server.always = changed(lambda listed: missing)
        with pytest.raises(InputError, match="gives no log-probabilities of prompts"):
            ServedTeacher(spec(folder, server))

    @pytest.mark.parametrize("tokenizes", [True, False])
    def test_another_tokenizer(self, tmp_path: Path, folder: Path, tokenizes: bool) -> None:
        with running(Reference(folder / "llama-teacher", tokenizes=tokenizes)) as server:
            ServedTeacher(spec(folder, server))
            words = tiny.tokenizer()
            words.add_tokens(["fox", "dog.", "!?.,;:", "x"])
            words.save_pretrained(tmp_path)
            with pytest.raises(InputError, match=r"has another tokenizer than teacher.tokenizer"):
                ServedTeacher(spec(folder, server, tokenizer=str(tmp_path), top_k=4))

    def test_servers_of_different_models(self, folder: Path, server: Reference) -> None:
        with running(Reference(folder / "other")) as other, pytest.raises(InputError, match="not serve the same model"):
            ServedTeacher(spec(folder, server, other))

    def test_the_fingerprint(self, folder: Path, server: Reference) -> None:
        first, second = (ServedTeacher(spec(folder, server)).fingerprint for _ in range(2))
        assert first == second
        assert first.max_length == 64
        with running(Reference(folder / "llama-teacher", max_length=32)) as shorter:
            both = ServedTeacher(spec(folder, server, shorter)).fingerprint
        assert both == replace(first, max_length=32)
        with running(Reference(folder / "other")) as other:
            assert not ServedTeacher(spec(folder, other)).fingerprint.is_near(first)
