"""The same numbers as TRL's chunked divergence, where the two claim to compute the same.

TRL returns one value a position (`beta` 0 is forward KL, 1 reverse KL) and divides by the number of tokens
outside; here the sum over positions is compared, before any division.
"""

import pytest
import torch

from tutelage.losses import Head, linear_divergence

trl = pytest.importorskip("trl.kernels.chunked_divergence", reason="TRL ≥ 1.16 is not installed")

BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd(0.1)": 0.1, "jsd(0.5)": 0.5, "jsd(0.9)": 0.9}


@pytest.mark.parametrize("text", BETAS)
@pytest.mark.parametrize(("temperature", "scale", "softcap"), [(1.0, 1.0, None), (2.0, 1.0, None), (1.0, 0.5, 3.0)])
def test_values_and_gradients_are_those_of_trl(
    text: str, temperature: float, scale: float, softcap: float | None
) -> None:
    positions, vocabulary = 40, 300
    hidden, teacher_hidden = torch.randn(positions, 12), torch.randn(positions, 20)
    weight, teacher_weight = torch.randn(vocabulary, 12) / 2, torch.randn(vocabulary, 20) / 2
    bias, teacher_bias = torch.randn(vocabulary), torch.randn(vocabulary)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]

    theirs, _ = trl.ChunkedDivergenceFunction.apply(
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias,
        BETAS[text], temperature, scale, softcap, scale, softcap,
    )  # fmt: skip
    ours = linear_divergence(
        hidden,
        Head(weight, bias, scale, softcap),
        teacher_hidden,
        Head(teacher_weight, teacher_bias, scale, softcap),
        text,
        temperature=temperature,
        memory=100_000,
    )
    torch.testing.assert_close(ours.divergence, theirs.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.total, theirs.sum(), rtol=1e-5, atol=0)
    wanted = torch.autograd.grad(theirs.sum(), leaves)
    for mine, other in zip(torch.autograd.grad(ours.total, leaves), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
