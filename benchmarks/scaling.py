"""How the vocabulary engine's time and memory grow with the vocabulary and with the positions.

    python benchmarks/scaling.py [--divergence jsd(0.5)] [--dtype float32] [--toy]

Batch and sequence length meet in the positions: the engine sees one flat row of them, whatever rows they come from.
Every point is measured by a process of its own: the least of three times, and the peak of resident memory less what
was resident before. Exponents are fitted by least squares on logarithms. The last table looks for a part of the
memory that grows with positions × vocabulary, in bytes a logit: what grows with only one of the two cancels in
m(more, more) − m(more, fewer) − m(fewer, more) + m(fewer, fewer).
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from memory import forget_peak, peak
from timing import machine, save

from tutelage import linear_divergence

WIDTHS, MEBIBYTE = (256, 384), 2**20
VOCABULARIES = (8192, 16384, 32768, 65536, 131072, 262144)
POSITIONS = (128, 256, 512, 1024, 2048, 4096)
CORNERS = ((1024, 32768), (1024, 131072), (4096, 32768), (4096, 131072))
Point = tuple[float, float]  # seconds, bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--divergence", default="jsd(0.5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--toy", action="store_true", help="two points, to see that it runs")
    parser.add_argument("--point", nargs=2, type=int, metavar=("POSITIONS", "VOCABULARY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measured(options, *options.point)))
        return
    print(f"{machine()}; widths {WIDTHS}, {options.divergence}, {options.dtype}\n")
    if options.toy:
        print(series("vocabulary", (64, 128), [apart(options, 16, v) for v in (64, 128)]))
        return
    vocabularies = [apart(options, 512, v) for v in VOCABULARIES]
    print(series("vocabulary, 512 positions", VOCABULARIES, vocabularies), flush=True)
    positions = [apart(options, n, 32768) for n in POSITIONS]
    print(series("positions, vocabulary 32,768", POSITIONS, positions), flush=True)
    corners = [apart(options, *corner) for corner in CORNERS]
    print(f"\nMemory that grows with positions × vocabulary: {per_logit(corners):.3f} bytes a logit")
    save("scaling", {"vocabulary": vocabularies, "positions": positions, "corners": corners})


def series(name: str, sizes: Sequence[int], points: Sequence[Point]) -> str:
    """A table along one size, and the exponents."""
    lines = [f"\n| {name} | seconds | extra MiB |\n|---|---|---|"]
    lines += [f"| {n:,} | {s:.3f} | {b / MEBIBYTE:,.0f} |" for n, (s, b) in zip(sizes, points, strict=True)]
    seconds, memory = (exponent(sizes, [point[which] for point in points]) for which in (0, 1))
    return "\n".join([*lines, f"\nexponents: time {seconds:.2f}, memory {memory:.2f}"])


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the logarithm of the values over that of the sizes."""
    logs = [math.log(max(v, 1e-9)) for v in values]
    return statistics.linear_regression([math.log(s) for s in sizes], logs).slope


def per_logit(corners: Sequence[Point]) -> float:
    """Bytes that each further logit would cost, from the four corners."""
    fewest, wide, long, most = (point[1] for point in corners)
    (fewer, narrow), (more, broad) = CORNERS[0], CORNERS[3]
    return (most - long - wide + fewest) / ((more - fewer) * (broad - narrow))


def apart(options: argparse.Namespace, positions: int, vocabulary: int) -> Point:
    """Measure one point by a process of its own."""
    settings = ["--divergence", options.divergence, "--dtype", options.dtype]
    command = [sys.executable, __file__, *settings, "--point", str(positions), str(vocabulary)]
    seconds, extra = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, extra


def measured(options: argparse.Namespace, positions: int, vocabulary: int) -> Point:
    """Measure one point in this process."""
    dtype = getattr(torch, options.dtype)
    tensors = [t.to(dtype) for w in WIDTHS for t in (torch.randn(positions, w), torch.randn(vocabulary, w) / w**0.5)]
    leaves = [t.requires_grad_() for t in tensors[:2]]

    def once(count: int) -> float:
        start = time.perf_counter()
        scores = linear_divergence(leaves[0][:count], leaves[1], tensors[2][:count], tensors[3], options.divergence)
        scores.total.backward()
        leaves[0].grad = leaves[1].grad = None
        return time.perf_counter() - start

    once(8)
    before = forget_peak()
    first = once(positions)
    extra = peak() - before
    return min(first, once(positions), once(positions)), extra


if __name__ == "__main__":
    main()
