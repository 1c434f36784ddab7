"""The divergences as the papers define them, on probabilities: written without a look at the code under test.

`student` and `teacher` are probabilities `[..., vocabulary]`; keep them in float64. Autograd through them gives
the reference gradients.
"""

import torch
from torch import Tensor

DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jsd(0.1)",
    "jsd(0.5)",
    "jsd(0.9)",
    "total_variation",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "skew_forward_kl(0.7)",
    "skew_reverse_kl(0.7)",
)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first‖second) = Σ first · log(first / second), where 0 · log 0 = 0."""
    return (torch.special.xlogy(first, first) - torch.special.xlogy(first, second)).sum(-1)


def divergence(text: str, student: Tensor, teacher: Tensor) -> Tensor:
    name, _, rest = text.partition("(")
    parameter = float(rest.rstrip(")") or "nan")
    if name == "forward_kl":
        return kl(teacher, student)
    if name == "reverse_kl":
        return kl(student, teacher)
    if name == "jsd":  # GKD, Eq. 1: β is the weight of the teacher, in the mixture and in the sum
        mixture = parameter * teacher + (1 - parameter) * student
        return parameter * kl(teacher, mixture) + (1 - parameter) * kl(student, mixture)
    if name == "total_variation":
        return (student - teacher).abs().sum(-1) / 2
    if name == "skew_forward_kl":  # DistiLLM, Eq. 3
        return kl(teacher, parameter * teacher + (1 - parameter) * student)
    if name == "skew_reverse_kl":  # DistiLLM, Eq. 4
        return kl(student, (1 - parameter) * teacher + parameter * student)
    raise KeyError(text)


def logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    product = hidden @ weight.T
    if bias is not None:
        product = product + bias
    product = product * scale
    return product if softcap is None else softcap * torch.tanh(product / softcap)
