"""The vocabulary engine against TRL's chunked divergence, dense logits, and its own four bare matrix products.

    python benchmarks/divergence.py [--positions 1024] [--vocabulary 49152] [--rounds 7] [--dtype float32]

Value and gradients of hidden states and head weight, 1,024 positions of widths 576 (student) and 960 (teacher).
"""

import argparse

import torch
from timing import in_turn, machine, save, table
from torch import Tensor

from tutelage import linear_divergence
from tutelage.divergences import named

BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd(0.5)": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    dtype, n, v = getattr(torch, options.dtype), options.positions, options.vocabulary
    hidden, teacher_hidden = torch.randn(n, 576, dtype=dtype), torch.randn(n, 960, dtype=dtype)
    weight, teacher_weight = (torch.randn(v, w) / w**0.5 for w in (576, 960))
    tensors = (hidden, weight.to(dtype), teacher_hidden, teacher_weight.to(dtype))
    print(f"{machine()}; {n} positions, vocabulary {v}, {options.dtype}\n")
    results = {}
    for divergence in BETAS:
        candidates = {
            "tutelage": lambda d=divergence: tutelage(*tensors, d),
            "trl": lambda d=divergence: trl(*tensors, d),
            "dense": lambda d=divergence: dense(*tensors, d),
            "four products": lambda: products(*tensors),
        }
        results[divergence] = in_turn(candidates, options.rounds)
        print(f"{divergence}\n\n{table(results[divergence], 'tutelage')}\n")
    save(f"divergence-{options.dtype}", results)


def tutelage(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, divergence: str):
    """One pass of our engine."""
    leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    linear_divergence(leaves[0], leaves[1], teacher_hidden, teacher_weight, divergence).total.backward()
    return leaves


def trl(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, divergence: str):
    """TRL 1.16's chunked function."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    settings = (BETAS[divergence], 1.0, 1.0, None, 1.0, None)
    values, _ = ChunkedDivergenceFunction.apply(*leaves, None, teacher_hidden, teacher_weight, None, *settings)
    values.sum().backward()
    return leaves


def dense(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, divergence: str):
    """All logits at once, by autograd."""
    leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    student_logp = (leaves[0] @ leaves[1].T).float().log_softmax(-1)
    with torch.no_grad():
        teacher_logp = (teacher_hidden @ teacher_weight.T).float().log_softmax(-1)
    named(divergence)(student_logp, teacher_logp).sum().backward()
    return leaves


def products(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor):
    """The four matrix products that nobody can do without."""
    logits = hidden @ weight.T
    teacher_logits = teacher_hidden @ teacher_weight.T
    return logits @ weight, logits.T @ hidden, teacher_logits


if __name__ == "__main__":
    main()
