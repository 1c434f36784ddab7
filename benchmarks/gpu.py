"""One CUDA machine: what it can do, whether the engine is right there, and how near to what it can do it comes.

    benchmarks/gpu.sh [--device cuda] [--toy]

First the rates of the device (matrix products, copying), then the engine, with its Triton kernel and without, against
its definition in float64, then the engine's time and memory against dense logits and against the four bare products,
sampling, with CUDA graphs and without, against `generate`, and whole steps of on-policy distillation. Nothing beyond
the package's own dependencies is needed. It takes at most 8 minutes; `--device cpu --toy` runs the same in seconds, on
tiny sizes, where all steps of sampling are plain.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from device import Device
from on_policy_step import ROWS, our_step, recipe_for
from task import STUDENT, TEACHER, TINY, Sizes, sections
from timing import machine, save
from torch import Tensor

from tutelage import LanguageModel, linear_divergence
from tutelage.config import Decoding, Model
from tutelage.divergences import Divergence, named
from tutelage.models.loading import load_model
from tutelage.rollouts.decoding import decode
from tutelage.training.quiet import quiet_transformers

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd(0.5)")
CHECKED = {
    torch.float32: (*DIVERGENCES, "skew_forward_kl(0.1)", "skew_reverse_kl(0.1)", "total_variation"),
    torch.bfloat16: (*DIVERGENCES, "skew_forward_kl(0.1)", "skew_reverse_kl(0.1)"),
}
"""The slope of total variation is a sign, which the rounding of bfloat16 logits flips wherever both models nearly
agree: there is no right number to compare with."""
MIDDLE_STUDENT: Sizes = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12
}  # fmt: skip
MIDDLE_TEACHER: Sizes = {
    "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 12
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    rate: int
    """Side of the square matrices of the rates."""
    positions: int
    widths: tuple[int, int]
    vocabulary: int
    step_vocabulary: int
    tokens: int
    models: dict[str, tuple[Sizes, Sizes]]
    """Student and teacher of the whole steps."""
    rounds: int


FULL = Scale(
    rate=8192, positions=4096, widths=(2048, 4096), vocabulary=128256, step_vocabulary=49152, tokens=64,
    models={"4 × 256 and 8 × 576": (STUDENT, TEACHER), "12 × 768 and 16 × 1536": (MIDDLE_STUDENT, MIDDLE_TEACHER)},
    rounds=5,
)  # fmt: skip
TOY = Scale(
    rate=128, positions=32, widths=(32, 48), vocabulary=512, step_vocabulary=512, tokens=4,
    models={"tiny": (TINY, TINY)}, rounds=2,
)  # fmt: skip


def rates(device: Device, scale: Scale) -> dict[str, float]:
    """Floating-point operations a second of matrix products, and bytes a second read and written by copying."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(scale.rate, scale.rate, device=device.name).to(dtype) for _ in range(2))
        seconds = device.seconds(lambda a=left, b=right: a @ b, scale.rounds)
        found[f"product {short(dtype)}"] = 2 * scale.rate**3 / seconds
    source = torch.randn(scale.rate * scale.rate, device=device.name)
    target = torch.empty_like(source)
    found["copy"] = (
        2 * source.numel() * source.element_size() / device.seconds(lambda: target.copy_(source), scale.rounds)
    )
    print("| rate of the device | |\n|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate / 1e12:.2f} T{'B' if name == 'copy' else 'FLOP'}/s |")
    return found


def states(device: Device, positions: int, scale: Scale, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random hidden states and head weights: the student's two, the teacher's two."""
    generator = torch.Generator(device.name).manual_seed(0)

    def draw(rows: int, width: int, spread: float) -> Tensor:
        return (torch.randn(rows, width, device=device.name, generator=generator) * spread).to(dtype)

    (width, teacher_width), vocabulary = scale.widths, scale.vocabulary
    return (
        draw(positions, width, 1.0), draw(vocabulary, width, 2 * width**-0.5),
        draw(positions, teacher_width, 1.0), draw(vocabulary, teacher_width, 2 * teacher_width**-0.5),
    )  # fmt: skip


def engine(tensors: tuple[Tensor, ...], divergence: str | Divergence, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Values a position and both gradients, by our engine."""
    hidden, weight = (t.detach().requires_grad_() for t in tensors[:2])
    scores = linear_divergence(hidden, weight, tensors[2], tensors[3], divergence, **options)
    scores.total.backward()
    assert scores.divergence is not None
    assert hidden.grad is not None
    assert weight.grad is not None
    return scores.divergence, hidden.grad, weight.grad


def without_kernel(divergence: str) -> Divergence:
    """The same divergence, of no family that the Triton kernel knows: it is worked out by PyTorch, in blocks."""
    return replace(named(divergence), family=None)


def dense(tensors: tuple[Tensor, ...], divergence: str, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The same by autograd over all logits at once, the pointwise work in a wider type."""
    hidden, weight = (t.detach().requires_grad_() for t in tensors[:2])
    student_logp = (hidden @ weight.T).to(wide).log_softmax(-1)
    teacher_logp = (tensors[2] @ tensors[3].T).to(wide).log_softmax(-1)
    values = named(divergence)(student_logp, teacher_logp)
    values.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return values.detach(), hidden.grad, weight.grad


def four_products(tensors: tuple[Tensor, ...]) -> object:
    """The matrix products that nobody can do without."""
    hidden, weight, teacher_hidden, teacher_weight = tensors
    logits = hidden @ weight.T
    return logits @ weight, logits.T @ hidden, teacher_hidden @ teacher_weight.T


def check(device: Device, scale: Scale) -> dict[str, float]:
    """The largest error of the engine on the device, as a share of the largest right number.

    Plain, against dense logits in float64; and with everything that a step may give it (weights a position, a share of
    the cross-entropy, a temperature), against the engine itself in float64, which the kernel does not do.

    Raises:
        SystemExit: it is larger than rounding explains.
    """
    found = {}
    print("\n| error of the engine | values | hidden gradient | weight gradient |\n|---|---|---|---|")
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        tensors = states(device, min(scale.positions, 64), scale, dtype)
        wide, options = tuple(t.double() for t in tensors), everything(tensors, scale)
        for divergence in CHECKED[dtype]:
            pairs = {
                "": (engine(tensors, divergence), dense(wide, divergence, torch.float64)),
                ", in blocks": (engine(tensors, without_kernel(divergence)), dense(wide, divergence, torch.float64)),
                ", everything": (engine(tensors, divergence, **options), engine(wide, divergence, **options)),
            }
            for kind, (ours, right) in pairs.items():
                errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, right, strict=True)]
                name = f"{divergence}{kind}, {short(dtype)}"
                print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
                found[name] = max(errors)
                if not max(errors) <= allowed:
                    raise SystemExit(f"{name} on {device.name}: an error of {max(errors):.2g}, allowed {allowed:.0e}")
    return found


def everything(tensors: tuple[Tensor, ...], scale: Scale) -> dict[str, Any]:
    """What a step may give the engine besides the states."""
    count, device = len(tensors[0]), tensors[0].device
    generator = torch.Generator().manual_seed(1)
    return {
        "coefficients": torch.rand(count, generator=generator).to(device),
        "targets": torch.randint(scale.vocabulary, (count,), generator=generator).to(device),
        "cross_entropy": torch.rand(count, generator=generator).to(device),
        "temperature": 2.0,
    }


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare_engine(device: Device, scale: Scale, product_rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Time and memory of the engine beside dense logits and the four products, and what the products' rate allows."""
    found = {}
    title = f"{scale.positions:,} positions, widths {scale.widths}, vocabulary {scale.vocabulary:,}"
    columns = "engine ms | / four products | / without kernel | / dense | / product rate | extra memory / dense"
    print(f"\n| {title} | {columns} |")
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        tensors = states(device, scale.positions, scale, dtype)
        operations = 2 * scale.positions * scale.vocabulary * (3 * scale.widths[0] + scale.widths[1])
        bound = operations / product_rates[f"product {short(dtype)}"]
        for divergence in DIVERGENCES:
            runs: dict[str, Callable[[], object]] = {
                "engine": lambda t=tensors, d=divergence: engine(t, d),
                "blocks": lambda t=tensors, d=divergence: engine(t, without_kernel(d)),
                "dense": lambda t=tensors, d=divergence: dense(t, d, torch.float32),
                "products": lambda t=tensors: four_products(t),
            }
            seconds = device.in_turn(runs, scale.rounds)
            bytes_of = {name: device.extra_memory(runs[name]) for name in ("engine", "dense")}
            ours = statistics.median(seconds["engine"])
            over = {
                n: statistics.median(a / b for a, b in zip(seconds["engine"], seconds[n], strict=True)) for n in runs
            }
            share = f"{bytes_of['engine'] / bytes_of['dense']:.2f}" if bytes_of["dense"] else "–"
            name = f"{divergence}, {short(dtype)}"
            print(
                f"| {name} | {1e3 * ours:.2f} | {over['products']:.2f} | {over['blocks']:.2f} | {over['dense']:.2f} "
                f"| {ours / bound:.2f} | {share} |"
            )
            found[name] = {"seconds": ours, "memory": bytes_of["engine"], "dense memory": bytes_of["dense"]}
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compare_sampling(device: Device, scale: Scale, folder: Path) -> dict[str, list[float]]:
    """Tokens a second of our decoding, with CUDA graphs and without, and of `generate`, by the last steps' student."""
    end = scale.step_vocabulary  # an id that is never drawn
    prompts = torch.randint(3, end, (4 * ROWS, 32), generator=torch.Generator().manual_seed(0))
    rows, decoding = (
        [tuple(row) for row in prompts.tolist()],
        Decoding(max_new_tokens=scale.tokens, batch_size=4 * ROWS),
    )
    graphs = replace(decoding, cuda_graphs=True)
    models = {dtype: sampling_model(device, folder, dtype, end) for dtype in ("float32", "bfloat16")}
    for dtype, model in models.items():
        check_graphs(model, rows, decoding, dtype)
    model = models["bfloat16"]
    network: Any = model.network
    moved = prompts.to(device.name)

    def theirs() -> None:
        network.generate(
            moved, attention_mask=torch.ones_like(moved), do_sample=True, top_k=0, temperature=1.0,
            max_new_tokens=scale.tokens, eos_token_id=end, pad_token_id=0,
        )  # fmt: skip

    runs: dict[str, Callable[[], object]] = {
        "tutelage": lambda: decode(model, rows, decoding, seed=0),
        "tutelage, CUDA graphs": lambda: decode(model, rows, graphs, seed=0),
        "generate": theirs,
    }
    seconds = device.in_turn(runs, 3)
    print(f"\n| sampling {len(rows)} × {scale.tokens}, bfloat16 | tokens a second |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {len(rows) * scale.tokens / statistics.median(times):,.0f} |")
    return seconds


def sampling_model(device: Device, folder: Path, dtype: Any, end: int) -> LanguageModel:
    """The student of the last steps, in one type."""
    spec = Model(model=str(folder / "student"), dtype=dtype, device=device.name)
    return LanguageModel(load_model(spec, "student", seed=0).eval(), stop_ids=(end,))


def check_graphs(model: LanguageModel, rows: list[tuple[int, ...]], decoding: Decoding, dtype: str) -> None:
    """Write the same text with CUDA graphs and without, twice, as the second time nothing has to be recorded.

    Raises:
        SystemExit: in float32, more than rounding explains is different.
    """
    plain = decode(model, rows, decoding, seed=0).responses
    print()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for call in ("first", "second"):
            start = time.perf_counter()
            replayed = decode(model, rows, replace(decoding, cuda_graphs=True), seed=0).responses
            seconds = time.perf_counter() - start
            same = sum(a == b for a, b in zip(replayed, plain, strict=True))
            print(f"CUDA graphs, {dtype}, {call} call: {same} of {len(rows)} texts the same, {seconds:.2f} s")
            if dtype == "float32" and same < 0.9 * len(rows):
                raise SystemExit("CUDA graphs write other text than plain steps")
    for warning in said:
        print(f"CUDA graphs, {dtype}: {warning.message}")


def whole_steps(device: Device, scale: Scale, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds and extra memory of steps of on-policy distillation."""
    found = {}
    print(f"\n| step, {ROWS} × {scale.tokens} tokens | precision | seconds | peak memory MiB |\n|---|---|---|---|")
    for name, (student, teacher) in scale.models.items():
        task = sections(folder, scale.step_vocabulary, student, teacher, device.name)
        for precision in ("float32", "bfloat16"):
            step = our_step(recipe_for(task, "reverse_kl", scale.tokens, precision))
            needed = device.extra_memory(step)
            seconds = device.seconds(step, 3)
            print(f"| {name} | {precision} | {seconds:.3f} | {needed / 2**20:,.0f} |")
            found[f"{name}, {precision}"] = {"seconds": seconds, "memory": needed}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/gpu.sh measures one CUDA machine, and torch finds no CUDA here; run it on one, "
            "or try its logic with --device cpu --toy"
        )
    quiet_transformers()
    device, scale, start = Device(options.device), TOY if options.toy else FULL, time.perf_counter()
    kernel = "the Triton kernel" if device.is_cuda and find_spec("triton") else "no kernel, PyTorch in blocks"
    print(f"{device.describe()}; {machine()}; pointwise work by {kernel}\n")
    found: dict[str, object] = {}
    found["rates"] = measured = rates(device, scale)
    found["errors"] = check(device, scale)
    found["engine"] = compare_engine(device, scale, measured)
    with tempfile.TemporaryDirectory() as folder:
        found["steps"] = whole_steps(device, scale, Path(folder))
        found["sampling"] = compare_sampling(device, scale, Path(folder))
    save("gpu", found)
    print(f"\n{time.perf_counter() - start:.0f} seconds in all")


if __name__ == "__main__":
    main()
