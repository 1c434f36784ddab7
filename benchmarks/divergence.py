"""The vocabulary engine against TRL's chunked divergence, dense logits, and its own four bare matrix products.

    python benchmarks/divergence.py [--dtype float32|bfloat16] [--rounds 7] [--only jsd(0.5) …] [--toy]

Value and gradients of hidden states and head weight, 1,024 positions of widths 576 (student) and 960 (teacher),
vocabulary 49,152. Memory is the peak of resident memory during one pass in a process of its own, less what was
resident before it: buffers, gradients and all.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

import torch
from memory import forget_peak, peak
from timing import in_turn, machine, save, table
from torch import Tensor

from tutelage import linear_divergence
from tutelage.divergences import named

BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd(0.5)": 0.5}
WIDTHS, MEBIBYTE = (576, 960), 2**20
MEMORY_BAR = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", nargs="*", choices=BETAS, default=list(BETAS))
    parser.add_argument("--toy", action="store_true", help="a size of about a second, to see that it runs")
    parser.add_argument("--memory-of", nargs=2, metavar=("CANDIDATE", "DIVERGENCE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.toy:
        options.positions, options.vocabulary, options.rounds, options.only = 64, 1024, 1, ["jsd(0.5)"]
    if options.memory_of:
        print(extra_memory(options, *options.memory_of))
        return
    tensors = inputs(options)
    print(f"{machine()}; {options.positions} positions, vocabulary {options.vocabulary}, {options.dtype}\n")
    for divergence in options.only:
        runs = {name: lambda run=run, d=divergence: run(tensors, d) for name, run in CANDIDATES.items()}
        seconds = in_turn(runs, options.rounds)
        memory = {name: measured_apart(options, name, divergence) for name in ("tutelage", "trl")}
        save(f"divergence-{options.dtype}-{divergence}", {"seconds": seconds, "extra_bytes": memory})
        print(f"{divergence}\n\n{table(seconds, 'tutelage')}\n")
        print(", ".join(f"{name} {size / MEBIBYTE:,.0f} MiB" for name, size in memory.items()), "of extra memory\n")
        if not options.toy:
            print("\n".join(judged(seconds, memory, bars(divergence, options.dtype))), "\n", flush=True)


def inputs(options: argparse.Namespace) -> list[Tensor]:
    """Hidden states and head of the student, then of the teacher."""
    torch.manual_seed(0)
    dtype, n, v = getattr(torch, options.dtype), options.positions, options.vocabulary
    return [
        tensor for w in WIDTHS for tensor in (torch.randn(n, w, dtype=dtype), (torch.randn(v, w) / w**0.5).to(dtype))
    ]


def bars(divergence: str, dtype: str) -> dict[str, float]:
    """The time that is allowed, as a share of each rival's."""
    if dtype == "bfloat16":
        return {"four products": 1.6}
    return {"trl": 0.30 if divergence.startswith("jsd") else 0.45, "four products": 1.25}


def judged(seconds: Mapping[str, list[float]], memory: Mapping[str, int], allowed: Mapping[str, float]) -> list[str]:
    """Say of each bar whether it is met."""
    lines = [("memory against trl", memory["tutelage"] / memory["trl"], MEMORY_BAR)]
    for name, bar in allowed.items():
        ratios = (ours / other for ours, other in zip(seconds["tutelage"], seconds[name], strict=True))
        lines.append((f"time against {name}", statistics.median(ratios), bar))
    return [
        f"{'met' if found <= bar else 'MISSED'}: {what} {found:.2f}, allowed {bar:.2f}" for what, found, bar in lines
    ]


def measured_apart(options: argparse.Namespace, candidate: str, divergence: str) -> int:
    """Extra memory of one pass in bytes, measured by a process of its own."""
    sizes = ["--positions", str(options.positions), "--vocabulary", str(options.vocabulary), "--dtype", options.dtype]
    command = [sys.executable, __file__, *sizes, "--memory-of", candidate, divergence]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def extra_memory(options: argparse.Namespace, candidate: str, divergence: str) -> int:
    """Extra memory of one pass in this process, once a small one has loaded what is loaded once."""
    run, tensors = CANDIDATES[candidate], inputs(options)
    run([t[:64] for t in tensors], divergence)
    before = forget_peak()
    kept = run(tensors, divergence)
    return peak() - before if kept else 0


def tutelage(tensors: Sequence[Tensor], divergence: str) -> list[Tensor]:
    """One pass of our engine."""
    leaves = [t.detach().requires_grad_() for t in tensors[:2]]
    linear_divergence(leaves[0], leaves[1], tensors[2], tensors[3], divergence).total.backward()
    return leaves


def trl(tensors: Sequence[Tensor], divergence: str) -> list[Tensor]:
    """TRL 1.16's chunked function."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    leaves = [t.detach().requires_grad_() for t in tensors[:2]]
    settings = (BETAS[divergence], 1.0, 1.0, None, 1.0, None)
    values, _ = ChunkedDivergenceFunction.apply(*leaves, None, tensors[2], tensors[3], None, *settings)
    values.sum().backward()
    return leaves


def dense(tensors: Sequence[Tensor], divergence: str) -> list[Tensor]:
    """All logits at once, by autograd."""
    leaves = [t.detach().requires_grad_() for t in tensors[:2]]
    student_logp = (leaves[0] @ leaves[1].T).float().log_softmax(-1)
    with torch.no_grad():
        teacher_logp = (tensors[2] @ tensors[3].T).float().log_softmax(-1)
    named(divergence)(student_logp, teacher_logp).sum().backward()
    return leaves


def products(tensors: Sequence[Tensor], divergence: str) -> tuple[Tensor, Tensor, Tensor]:
    """The four matrix products that nobody can do without."""
    hidden, weight, teacher_hidden, teacher_weight = tensors
    logits = hidden @ weight.T
    teacher_logits = teacher_hidden @ teacher_weight.T
    return logits @ weight, logits.T @ hidden, teacher_logits


CANDIDATES = {"tutelage": tutelage, "trl": trl, "dense": dense, "four products": products}

if __name__ == "__main__":
    main()
