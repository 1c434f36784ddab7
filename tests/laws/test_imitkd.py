"""ImitKD's `opt` loss against its definition, and what makes it differ from `full`."""

import pytest
import torch
from tests.tiny_models import STOP, own_logits, pair
from tests.toy import PROMPT, TabularModel

from tutelage.methods import SFT, ImitKD, SupervisedKD
from tutelage.rollouts.rollout import Rollout, joined


def written(writer: str, seed: int) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    responses = [(*torch.randint(2, 50, (n - 1,), generator=generator).tolist(), STOP) for n in (1, 4, 7)]
    return Rollout.of([[3, 4, 5], [6], [7, 8]], responses, writer=writer)


def opt(student, teacher, rollout: Rollout) -> torch.Tensor:
    """−log q of the teacher's most probable token on the student's text, of the text's own word elsewhere."""
    total = torch.zeros((), dtype=torch.float64)
    for writer, prompt, response in zip(rollout.writers, rollout.prompts, rollout.responses, strict=True):
        logq = own_logits(student.model, prompt, response).log_softmax(-1)
        best = own_logits(teacher.model.model, prompt, response).argmax(-1)
        words = best if writer == "student" else torch.tensor(response)
        total = total - logq[range(len(response)), words].sum()
    return total


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_opt_is_the_definition(kind: str) -> None:
    student, teacher = pair(kind)
    both = joined([written("student", 1), written("data", 2), written("teacher", 3)]).select(
        [8, 0, 3, 6, 1, 4, 7, 2, 5]
    )
    found = ImitKD(loss="opt").terms(both, student, teacher).losses["student"]
    wanted = opt(student, teacher, both)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    parameters = list(student.model.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in (found, wanted))
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-10)


def test_opt_on_fixed_text_is_fine_tuning() -> None:
    student, teacher = pair("gpt2")
    for writer in ("data", "teacher"):
        rollout = written(writer, 1)
        ours = ImitKD(loss="opt").terms(rollout, student, teacher).losses["student"]
        assert torch.equal(ours, SFT().terms(rollout, student, None).losses["student"])


def test_full_is_supervised_kd_on_any_text() -> None:
    student, teacher = pair("gpt2")
    for writer in ("data", "student"):
        rollout = written(writer, 1)
        ours = ImitKD().terms(rollout, student, teacher).losses["student"]
        assert torch.equal(ours, SupervisedKD().terms(rollout, student, teacher).losses["student"])


def test_opt_never_rewards_the_students_own_words() -> None:
    """Only the contexts of the student's text matter: another last token changes nothing, the teacher's choice does."""
    student, teacher = TabularModel(4, 3, seed=1), TabularModel(4, 3, seed=2).frozen()
    method = ImitKD(loss="opt")
    for prefix in ((0, 1), (2, 3), (3, 3)):
        texts = [Rollout.of([PROMPT], [(*prefix, last)], writer="student") for last in range(4)]
        losses = [method.terms(text, student, teacher).losses["student"].item() for text in texts]
        assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)
        best = teacher.distributions((*prefix, 0)).argmax(-1)
        wanted = -student.distributions((*prefix, 0))[range(3), best].sum()
        assert losses[0] == pytest.approx(wanted.item(), rel=1e-12)


def test_opt_is_the_limit_of_full_for_a_sharp_teacher() -> None:
    student, teacher = TabularModel(4, 3, seed=1), TabularModel(4, 3, seed=2).frozen()
    with torch.no_grad():
        teacher.table.mul_(200)
    rollout = Rollout.of([PROMPT] * 3, [(0, 1, 2), (3, 2, 1), (1, 1, 0)], writer="student")
    found = [ImitKD(loss=loss).terms(rollout, student, teacher).losses["student"] for loss in ("opt", "full")]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@pytest.mark.parametrize("other", [{"divergence": "reverse_kl"}, {"cross_entropy": 0.5}, {"temperature": 2.0}])
def test_opt_takes_no_divergence(other) -> None:
    with pytest.raises(ValueError, match="loss 'opt' compares with single tokens"):
        ImitKD(loss="opt", **other)
