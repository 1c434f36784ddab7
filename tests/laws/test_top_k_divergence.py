"""Divergences from a teacher's top-k, against the definition on coarsened distributions in float64."""

import pytest
import torch
from tests import definitions
from tests.definitions import DIVERGENCES
from torch import Tensor

from tutelage.divergences import named
from tutelage.errors import InputError
from tutelage.losses import Head, chunks, linear_divergence, top_k_divergence

POSITIONS, WIDTH, VOCABULARY, K = 7, 5, 11, 4
each = pytest.mark.parametrize("text", DIVERGENCES)
chunked = pytest.mark.parametrize("memory", [1, 300, 2**27])


def models(dtype: torch.dtype = torch.float64, positions: int = POSITIONS) -> tuple[Tensor, Tensor, Tensor]:
    """Student's hidden states and weight, and the teacher's log-probabilities."""
    hidden, weight = torch.randn(positions, WIDTH).to(dtype), torch.randn(VOCABULARY, WIDTH).to(dtype)
    teacher_logp = (2 * torch.randn(positions, VOCABULARY)).to(dtype).log_softmax(-1)
    return hidden.requires_grad_(), weight.requires_grad_(), teacher_logp


def record(teacher_logp: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    """The ids and log-probabilities of a top-k record."""
    kept = teacher_logp.topk(k)
    return kept.indices, kept.values


def coarse(probabilities: Tensor, ids: Tensor) -> Tensor:
    """The kept tokens and the sum of the others, one position after another."""
    rows = []
    for row, places in zip(probabilities, ids, strict=True):
        kept = [int(place) for place in places if place >= 0]
        rest = [n for n in range(len(row)) if n not in kept]
        padding = row.new_zeros(len(places) - len(kept))
        rows.append(torch.cat([row[kept], padding, row[rest].sum()[None]]))
    return torch.stack(rows) if rows else probabilities.new_zeros(0, ids.shape[1] + 1)


def expected(text: str, student_logits: Tensor, teacher_logp: Tensor, ids: Tensor) -> Tensor:
    """The divergence per position by its definition."""
    return definitions.divergence(text, coarse(student_logits.softmax(-1), ids), coarse(teacher_logp.exp(), ids))


@each
@chunked
@pytest.mark.parametrize("options", [{}, {"temperature": 1.7, "scale": 0.7, "softcap": 3.0, "bias": True}], ids=str)
def test_it_is_the_divergence_of_the_coarsened_distributions(
    text: str, memory: int, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with coefficients and cross-entropy; fewer than k tokens at some positions."""
    monkeypatch.setattr(chunks, "_CACHED_NUMBERS", 3 * VOCABULARY)
    hidden, weight, teacher_logp = models()
    bias = torch.randn(VOCABULARY).double().requires_grad_() if "bias" in options else None
    scale, softcap = options.get("scale", 1.0), options.get("softcap")
    temperature = options.get("temperature", 1.0)
    ids, logp = record(teacher_logp)
    ids[1, 2:], logp[1, 2:] = -1, -torch.inf
    ids[4], logp[4] = -1, -torch.inf
    ids[5, 0], logp[5, 0] = -1, -torch.inf
    targets, coefficients = torch.randint(VOCABULARY, (POSITIONS,)), torch.rand(POSITIONS).double()
    cross_entropy = torch.rand(POSITIONS).double()
    scores = top_k_divergence(
        hidden, Head(weight, bias, scale, softcap), ids, logp, text, coefficients=coefficients, targets=targets,
        cross_entropy=cross_entropy, temperature=temperature, recorded_temperature=temperature, memory=memory,
    )  # fmt: skip
    logits = definitions.logits(hidden, weight, bias, scale, softcap)
    divergence = expected(text, logits / temperature, teacher_logp, ids)
    student_logp = logits.log_softmax(-1)[torch.arange(POSITIONS), targets]
    total = (coefficients * divergence).sum() - (cross_entropy * student_logp).sum()
    torch.testing.assert_close(scores.divergence, divergence.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(scores.student_logp, student_logp.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(scores.total, total, rtol=1e-10, atol=0)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    wanted = torch.autograd.grad(total, leaves)
    for mine, theirs in zip(torch.autograd.grad(scores.total, leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10 * theirs.abs().max().item())


@each
def test_it_never_exceeds_the_divergence_of_the_whole_distributions_and_grows_with_k(text: str) -> None:
    """The data-processing inequality."""
    hidden, weight, teacher_logp = models(positions=50)
    found = [top_k_divergence(hidden, weight, *record(teacher_logp, k), text).divergence for k in range(VOCABULARY + 1)]
    whole = named(text)(definitions.logits(hidden, weight).log_softmax(-1), teacher_logp).detach()
    assert found[0].abs().max() < 1e-12
    for fewer, more in zip(found, [*found[1:], whole], strict=True):
        assert (fewer <= more + 1e-9).all()  # a tail of one improbable token has lost digits in 1 − Σ p
    assert (found[K] < whole - 1e-6).any()
    torch.testing.assert_close(found[VOCABULARY], whole, rtol=1e-10, atol=1e-12)


@each
def test_with_every_token_kept_it_is_the_whole_divergence(text: str) -> None:
    """In any order; the tail, which is empty, does not count however the log-probabilities were rounded."""
    hidden, weight, teacher_logp = models()
    teacher_hidden = torch.eye(POSITIONS).double()
    full = linear_divergence(hidden, weight, teacher_hidden, teacher_logp.T.contiguous(), text)
    ids = torch.stack([torch.randperm(VOCABULARY) for _ in range(POSITIONS)])
    logp = teacher_logp.gather(1, ids)
    wanted = torch.autograd.grad(full.total, [hidden, weight])
    for error in (0.0, 1e-3, -1e-3):
        scores = top_k_divergence(hidden, weight, ids, logp + error, text)
        torch.testing.assert_close(scores.divergence, full.divergence, rtol=1e-10, atol=1e-12)
        for mine, theirs in zip(torch.autograd.grad(scores.total, [hidden, weight]), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@each
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_narrower_types_are_close_to_float64(text: str, dtype: torch.dtype, rtol: float) -> None:
    hidden, weight, teacher_logp = models(dtype)
    ids, logp = record(teacher_logp.float())
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    found = top_k_divergence(hidden, weight, ids, logp, text)
    wanted = top_k_divergence(*exact, ids, logp.double(), text)
    assert found.divergence.dtype == torch.float32
    torch.testing.assert_close(found.total.double(), wanted.total, rtol=rtol, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(found.total, [hidden, weight]), torch.autograd.grad(wanted.total, exact), strict=True
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=rtol * theirs.abs().max().item())


@each
def test_log_probabilities_that_add_up_to_more_than_one_give_a_finite_divergence(text: str) -> None:
    """bfloat16 has three digits, so the k kept may add up to more than one."""
    hidden, weight, _ = models(torch.float32)
    teacher = torch.full((POSITIONS, K), 1 / K + 1e-3).log()
    ids = torch.arange(K).repeat(POSITIONS, 1)
    scores = top_k_divergence(hidden, weight, ids, teacher, text)
    assert scores.divergence.isfinite().all()
    masses = top_k_divergence(hidden.detach(), weight.detach(), ids, teacher, lambda q, p: p.exp().sum(-1))
    torch.testing.assert_close(masses.divergence, torch.ones(POSITIONS), rtol=1e-6, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(scores.total, [hidden, weight]))


@chunked
def test_a_function_of_ones_own_and_a_parameter_a_position(memory: int) -> None:
    hidden, weight, teacher_logp = models()
    ids, logp = record(teacher_logp)
    ids[2, 1:], logp[2, 1:] = -1, -torch.inf

    def by_hand(student: Tensor, teacher: Tensor) -> Tensor:
        return (teacher.exp() * (teacher - student)).sum(-1)

    found = top_k_divergence(hidden, weight, ids, logp, by_hand, memory=memory)
    wanted = top_k_divergence(hidden, weight, ids, logp, "forward_kl")
    torch.testing.assert_close(found.divergence, wanted.divergence)
    for mine, theirs in zip(*(torch.autograd.grad(s.total, [hidden, weight]) for s in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)
    parameters = torch.tensor([0.1, 0.5] * POSITIONS)[:POSITIONS].double()
    mixed = top_k_divergence(hidden, weight, ids, logp, "jsd", parameters=parameters, memory=memory).divergence
    for value in (0.1, 0.5):
        one = top_k_divergence(hidden, weight, ids, logp, f"jsd({value})").divergence
        torch.testing.assert_close(mixed[parameters == value], one[parameters == value])


def test_an_outcome_that_is_none_has_no_slope_whatever_the_function() -> None:
    """The sum of the logarithms has one of 1 everywhere, at an id of −1 too."""
    hidden, weight, teacher_logp = models()
    ids, logp = record(teacher_logp)
    ids[:, 2:], logp[:, 2:] = -1, -torch.inf
    found = top_k_divergence(hidden, weight, ids, logp, lambda q, p: q.sum(-1)).total
    kept = coarse(definitions.logits(hidden, weight).softmax(-1), ids[:, :2])
    wanted = torch.autograd.grad(kept.log().sum(), [hidden, weight])
    for mine, theirs in zip(torch.autograd.grad(found, [hidden, weight]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_the_teachers_log_probability_of_the_target_is_its_own_or_that_of_the_tail() -> None:
    hidden, weight, _ = models(positions=3)
    teacher = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.75, 0.0]]).double().log()
    ids = torch.tensor([[4, 9], [4, 9], [3, -1]])
    targets = torch.tensor([9, 0, 4])
    scores = top_k_divergence(hidden, weight, ids, teacher, "reverse_kl", targets=targets)
    torch.testing.assert_close(scores.teacher_logp, torch.tensor([0.25, 0.25, 0.25]).double().log())
    scores = top_k_divergence(hidden, weight, ids, teacher, "reverse_kl", targets=torch.tensor([4, 4, 3]))
    torch.testing.assert_close(scores.teacher_logp, torch.tensor([0.5, 0.5, 0.75]).double().log())


@each
def test_no_positions_give_a_differentiable_zero(text: str) -> None:
    hidden, weight, _ = models(positions=0)
    scores = top_k_divergence(hidden, weight, torch.zeros(0, K, dtype=torch.long), torch.zeros(0, K).double(), text)
    scores.total.backward()
    assert scores.total.item() == 0
    assert scores.divergence.shape == (0,)
    assert not weight.grad.any()


def test_another_temperature_than_the_records_is_refused() -> None:
    hidden, weight, teacher_logp = models()
    with pytest.raises(InputError, match=r"recorded at temperature 1, but the divergence is asked for at 2"):
        top_k_divergence(hidden, weight, *record(teacher_logp), "forward_kl", temperature=2.0)


def test_ids_beyond_what_is_compared_are_refused() -> None:
    hidden, weight, teacher_logp = models()
    ids, logp = record(teacher_logp)
    ids[3, 1] = VOCABULARY
    with pytest.raises(InputError, match="has the id 11, but only the 11 ids"):
        top_k_divergence(hidden, weight, ids, logp, "forward_kl")
    with pytest.raises(ValueError, match="cross_entropy needs targets"):
        top_k_divergence(hidden, weight, ids, logp, "forward_kl", cross_entropy=torch.ones(POSITIONS))
