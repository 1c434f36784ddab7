"""The Triton kernel against the way in blocks, run by Triton's interpreter (`test_triton.py` starts it)."""

from dataclasses import replace

import pytest
import torch
from tests.laws.test_linear_divergence import Case, case, full_case

from tutelage.losses import Scores, linear, linear_divergence, triton_pointwise

each = pytest.mark.parametrize(
    "text",
    ["forward_kl", "reverse_kl", "jsd(0.1)", "total_variation", "skew_forward_kl(0.1)", "skew_reverse_kl(0.7)"],
)
two = pytest.mark.parametrize("text", ["forward_kl", "jsd(0.9)"])
both = pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])


def run(c: Case, text: str, memory: int = 2**27, parameters=None) -> Scores:
    return linear_divergence(
        c.hidden, c.head(), c.teacher_hidden, c.teacher_head(), text, coefficients=c.coefficients, targets=c.targets,
        cross_entropy=c.cross_entropy, temperature=c.temperature, vocabulary=c.vocabulary, parameters=parameters,
        memory=memory,
    )  # fmt: skip


def as_dtype(c: Case, dtype: torch.dtype) -> Case:
    """The same case in another type."""
    names = ("hidden", "weight", "bias", "teacher_hidden", "teacher_weight", "teacher_bias")
    changed = {n: getattr(c, n).detach().to(dtype).requires_grad_() for n in names if getattr(c, n) is not None}
    return replace(c, **changed)


def assert_same(c: Case, text: str, rtol: float, monkeypatch: pytest.MonkeyPatch, **options) -> None:
    """Compare values, and gradients relative to the largest; in blocks first, then in the kernel."""
    wanted = run(c, text, **options)
    calls = []
    kernel = triton_pointwise.InOneKernel.__call__
    monkeypatch.setattr(triton_pointwise.InOneKernel, "__call__", lambda *a: calls.append(1) or kernel(*a))
    monkeypatch.setattr(triton_pointwise, "BLOCK", 8)  # of which the vocabulary is no multiple
    monkeypatch.setattr(linear, "_has_kernel", lambda *_: True)
    found = run(c, text, **options)
    assert len(calls) > 0 or not len(c.hidden)
    for name in ("total", "divergence", "student_logp", "teacher_logp"):
        mine, theirs = getattr(found, name), getattr(wanted, name)
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    if not found.total.requires_grad:
        return
    gradients = (torch.autograd.grad(scores.total, c.leaves()) for scores in (found, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(mine, theirs, rtol=0, atol=rtol * largest)


@each
@both
def test_with_every_option_at_once_in_several_chunks(text: str, dtype, rtol: float, monkeypatch) -> None:
    assert_same(as_dtype(full_case(), dtype), text, rtol, monkeypatch, memory=300)


@two
def test_with_no_option(text: str, monkeypatch) -> None:
    assert_same(as_dtype(case(), torch.float32), text, 1e-5, monkeypatch)


@each
def test_no_positions(text: str, monkeypatch) -> None:
    assert_same(as_dtype(case(positions=0), torch.float32), text, 0, monkeypatch)


@pytest.mark.parametrize("name", ["jsd", "skew_forward_kl", "skew_reverse_kl"])
def test_a_parameter_a_position(name: str, monkeypatch) -> None:
    parameters = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7, 0.2, 0.4], dtype=torch.float64)
    assert_same(as_dtype(full_case(), torch.float32), name, 1e-5, monkeypatch, parameters=parameters)


@pytest.mark.parametrize("text", ["jsd(0.5)", "reverse_kl", "total_variation", "skew_forward_kl(0.1)"])
def test_impossible_tokens(text: str, monkeypatch) -> None:
    """As many in a row as a block holds, so that a block may have none that is possible."""
    absent = torch.zeros(11)
    absent[:8] = -torch.inf
    c = case(bias=absent, teacher_bias=absent if text == "reverse_kl" else absent.roll(1))
    assert_same(as_dtype(c, torch.float32), text, 1e-5, monkeypatch)


@two
def test_without_gradients_nothing_is_written(text: str, monkeypatch) -> None:
    c = as_dtype(full_case(), torch.float32)
    for leaf in c.leaves():
        leaf.requires_grad_(False)
    assert_same(c, text, 0, monkeypatch)
