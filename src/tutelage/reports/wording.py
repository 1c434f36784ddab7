"""Numbers and sentences of a report, in plain words."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from tutelage.reports.run_files import RunFiles
from tutelage.training.progress import PERCENT

METHODS = {
    "sft": "Fine-tuning",
    "seqkd": "SeqKD",
    "supervised-kd": "Supervised KD",
    "on-policy-kd": "On-policy KD",
    "imitkd": "ImitKD",
    "gkd": "GKD",
    "pre-distil": "Pre-distillation",
    "cross-tokenizer": "Cross-tokenizer distillation",
    "distillm": "DistiLLM",
    "distillm-2": "DistiLLM-2",
    "minillm": "MiniLLM",
    "minillm-single-step": "Single-step MiniLLM",
    "minillm-ranking": "Ranking (MiniLLM)",
    "distribution-matching": "Distribution matching",
    "moment-matching": "Moment matching",
    "gkd-reward": "GKD with a reward",
}
"""Names as people write them, where they are not the recipe's."""
HIGHER = ("exact_answer", "rouge_l", "same_top_token")
"""Metrics of evaluations of which more is better; of the others less is."""
HEADLINES = ("exact_answer", "rouge_l", "loss", "forward_kl")
"""What a report speaks of first, where it was measured."""
_GAP = "\u00a0"  # a number and its unit stay on one line
_UNITS = {"loss": "nats a token", "forward_kl": "nats a token", "reverse_kl": "nats a token", "jsd": "nats a token"}


_SPELT = {"kl": "KL", "jsd": "JSD", "bleu": "BLEU", "chrf": "chrF", "ece": "ECE", "nll": "NLL", "brier": "Brier"}


def in_words(metric: str) -> str:
    """A metric's name as a heading has it.

    >>> in_words("exact_answer"), in_words("self_bleu"), in_words("forward_kl_references"), in_words("rouge_l")
    ('exact answer', 'self BLEU', 'forward KL references', 'ROUGE-L')
    """
    first, *rest = metric.split("_")
    if first == "rouge" and rest:
        first, rest = f"ROUGE-{rest[0].upper()}", rest[1:]
    return " ".join(_SPELT.get(word, word) for word in (first, *rest))


def size(parameters: int) -> str:
    r"""A number of weights.

    >>> [size(n) for n in (57_360, 796_544, 7_240_000_000, 999_950)]
    ['57\xa0k', '0.8\xa0M', '7.2\xa0B', '1.0\xa0M']
    """
    for unit, scale, least in (("B", 1e9, 5e8), ("M", 1e6, 5e5)):
        if parameters >= least:
            return f"{parameters / scale:.{0 if parameters >= 100 * scale else 1}f}{_GAP}{unit}"
    return f"{parameters / 1e3:.0f}{_GAP}k" if parameters >= 1000 else str(parameters)


def value(name: str, number: float) -> str:
    r"""One value of an evaluation's metric: shares in per cent.

    >>> value("exact_answer", 0.1681), value("loss", 1.23456), value("loss", float("nan"))
    ('16.8\xa0%', '1.23', 'not finite')
    """
    if not isfinite(number):
        return "not finite"
    return f"{100 * number:.1f}{_GAP}%" if name in PERCENT else f"{number:.3g}"


def interval(name: str, measured: Mapping[str, Any]) -> str:
    """The 95 % interval of a value, without its unit."""
    low, high = float(measured["low"]), float(measured["high"])
    if not (isfinite(low) and isfinite(high)):
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f}" if name in PERCENT else f"{low:.3g}–{high:.3g}"


def change(name: str, difference: float) -> str:
    r"""What was added to a value, shares in percentage points.

    >>> change("exact_answer", 0.778), change("loss", -0.5)
    ('+77.8\xa0points', '−0.5')
    """
    amount = f"{100 * abs(difference):.1f}{_GAP}points" if name in PERCENT else f"{abs(difference):.3g}"
    return ("−" if difference < 0 else "+" if difference > 0 else "") + amount


def unit(name: str) -> str:
    """The unit of an evaluation's metric, where a table has to say it."""
    return _UNITS.get(name, "")


def headline_metric(evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """The metric to speak of first; `None` where nothing was measured."""
    names = list(evaluations[-1]["metrics"]) if evaluations else []
    return next((name for name in HEADLINES if name in names), names[0] if names else None)


def what_happened(run: RunFiles) -> str:
    """The run in one sentence."""
    wanted = run.section("train").get("steps")
    wanted = wanted if isinstance(wanted, int) else None
    done = run.finished or (wanted is not None and run.done >= wanted)
    method = METHODS.get(run.method, run.method)
    verb = "taught" if done else "is teaching"
    record = run.record
    student = f"a {size(record.student_parameters)} student" if record else "the student"
    teacher = f" from a {size(record.teacher_parameters)} teacher" if record and record.teacher_parameters else ""
    span = f"for {run.done:,} steps" if done else f"and is at step {run.done:,}" + (f" of {wanted:,}" if wanted else "")
    return f"{method} {verb} {student}{teacher} {span}{_what_changed(run)}."


def _what_changed(run: RunFiles) -> str:
    name = headline_metric(run.evaluations)
    if name is None:
        losses = [float(step["loss"]) for step in run.steps if "loss" in step]
        return f": the training loss went from {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
    last = run.evaluations[-1]["metrics"][name]
    first = run.evaluations[0]["metrics"].get(name)
    if first is None or len(run.evaluations) < 2:
        return f": {name} is {_with_interval(name, last)}"
    before, after = float(first["value"]), float(last["value"])
    if after == before:
        return f": {name} stayed at {_with_interval(name, last)}"
    verb = "rose" if after > before else "fell"
    overlap = float(first["low"]) <= float(last["high"]) and float(last["low"]) <= float(first["high"])
    doubt = "; the 95 % intervals overlap" if overlap else ""
    return f": {name} {verb} from {_with_interval(name, first)} to {_with_interval(name, last)}{doubt}"


def _with_interval(name: str, measured: Mapping[str, Any]) -> str:
    reach = interval(name, measured)
    return value(name, float(measured["value"])) + (f" ({reach})" if reach else "")


def what_differs(runs: Sequence[RunFiles]) -> str:
    """Several runs in one sentence: which is best at what they have in common."""
    count = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}.get(len(runs), str(len(runs)))
    shared = [run for run in runs if run.evaluations]
    names = [set(run.evaluations[-1]["metrics"]) for run in shared]
    common = set.intersection(*names) if names else set()
    name = next((name for name in (*HEADLINES, *sorted(common)) if name in common), None)
    if name is None or len(shared) < len(runs):
        return f"{count} runs side by side; they have no metric in common."
    found = [(run.name, run.evaluations[-1]["metrics"][name]) for run in shared]
    order = sorted(found, key=lambda entry: float(entry[1]["value"]), reverse=name in HIGHER)
    (best, first), (last, worst) = order[0], order[-1]
    return (
        f"{count} runs: {best} ends with the {'highest' if name in HIGHER else 'lowest'} {name}, "
        f"{_with_interval(name, first)}; {last} with {_with_interval(name, worst)}."
    )
