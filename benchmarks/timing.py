"""Timing things in turn: A B C, A B C, …, so that a machine whose speed drifts treats them alike."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def in_turn(candidates: Mapping[str, Callable[[], object]], rounds: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Run each candidate once to warm up, then `rounds` times in turn; return seconds.

    `pause` seconds go before each turn, for what another process does after its own.
    """
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: Mapping[str, list[float]], ours: str) -> str:
    """A table of medians and spreads, with the ratio of `ours` to each line, taken round by round."""
    lines = [f"| | median s | spread | {ours} / this |", "|---|---|---|---|"]
    for name, times in seconds.items():
        ratios = [mine / other for mine, other in zip(seconds[ours], times, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(times):.3f} | {min(times):.3f}–{max(times):.3f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def machine() -> str:
    """What the figures were made on."""
    cpu = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def save(name: str, seconds: Mapping[str, object]) -> None:
    """Keep the raw figures beside the script."""
    folder = Path("runs/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine(), "seconds": seconds}, indent=1))


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
