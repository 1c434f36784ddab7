"""Alarms: what goes wrong in distillation, seen while it happens, with what to do about it (docs/health.md).

Every step is measured; a measure is averaged over some steps and held against a limit. What a limit is compared with
is remembered in the checkpoint, so a resumed run sees what the uninterrupted one would have seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from tutelage.models.cached_teacher import TopKTeacher
from tutelage.rollouts.rollout import Rollout
from tutelage.training.measures import all_equal, entropy_ratio, mass_outside, text_measures
from tutelage.training.setup import Setup

WINDOW = 20
"""Steps that a measure of text is averaged over, and that a run's own beginning takes: a single batch scatters."""
SPIKE_WINDOW = 128
"""Steps that a loss is compared with."""
SPIKE_LEAST = 32
"""Steps before that comparison begins: fewer say little about the scatter."""
SPIKE_SIGMAS = 6.0
"""Standard deviations above the mean that make a spike. Reference: OLMo's stability monitor, which waits for 128."""
SPIKE_SCATTER = 1e-3
"""Least standard deviation, as a share of the mean: a loss that hardly moves has no spikes."""
WORSE = 2.0
"""An alarm is said again when it is so many times worse than when it was said last."""
SEQUENCES = 8
"""Sequences on which the teacher's mass outside the shared vocabulary is measured."""
SPIKING = ("loss", "divergence", "gradient_norm")
LOGGED = ("repetition", "prompt_overlap", "empty", "teacher_mass_outside")
"""Measures that metrics.jsonl has beside what it has anyway."""


@dataclass(frozen=True)
class Limit:
    """How far a measure may go."""

    name: str
    """The alarm."""
    measure: str
    bound: float
    advice: str
    below: bool = False
    """Whether it is an alarm below the bound instead of above it."""
    relative: bool = False
    """Whether the measure is taken relative to the run's first steps."""
    window: int = WINDOW

    def severity(self, value: float) -> float:
        """Return how far beyond the bound a value is: above 1 is an alarm, and below a bound 4 is the worst."""
        return self.bound / max(value, self.bound / 4) if self.below else value / self.bound


LIMITS = (
    Limit("responses grow", "length", 2.0, "the student rambles, or learns to write longer text: look at samples, and "
          "at ended; lower max_new_tokens or train.learning_rate", relative=True),
    Limit("responses shrink", "length", 0.5, "the student learns to stop early: look at samples; a sum over the "
          "response as the loss, or a reward, favours short text", below=True, relative=True),
    Limit("repetition", "repetition", 0.3, "the student loops: sample at temperature 1 (not greedy), mix in fixed "
          "text, lower train.learning_rate, try another divergence"),
    Limit("no end", "ended", 0.5, "most responses are cut at max_new_tokens: raise it, or check that the data ends in "
          "the student's stop token", below=True),
    Limit("copies the prompt", "prompt_overlap", 0.5, "the student repeats its prompt: check the chat template, or "
          "start from a student that follows instructions (sft first)"),
    Limit("empty responses", "empty", 0.99, "the student stops at once: check template and stop tokens, lower "
          "train.learning_rate", window=1),
    Limit("equal rewards", "equal_rewards", 0.5, "equal rewards prefer nothing: use a reward that tells this "
          "student's responses apart, more samples, or a better start (sft first)"),
    Limit("entropy collapse", "entropy_ratio", 0.1, "the student is sure of text that the teacher finds unlikely: "
          "lower train.learning_rate, mix in fixed text, use forward_kl or jsd", below=True),
    Limit("mass outside the vocabulary", "teacher_mass_outside", 0.01, "the teacher would write tokens that the "
          "student does not have, and the comparison leaves them out: check both tokenizers, or distil on text (sft)",
          window=1),
)  # fmt: skip
"""The limits of text; docs/health.md has the reason of each."""
SPIKE_ADVICE = "look at the batches of this step, lower train.learning_rate or train.clip_norm if it does not come back"


class Watch:
    """Looks at every step of a run.

    Args:
        setup: models and recipe.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.news: list[str] = []
        """What is to be said about the last step: new alarms, and those that got worse."""
        self._first: dict[str, list[float]] = {}
        self._recent: dict[str, list[float]] = {}
        self._said: dict[str, float] = {}

    def look(self, rollout: Rollout, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Measure a step.

        Args:
            rollout: its text.
            metrics: its other metrics.
            step: counted from 0.

        Returns:
            What goes into the step's metrics: measures, and the names of `alarms` where there are some.
        """
        self.news = []
        if self._setup.recipe.train.alarms == "off":
            return {}
        measured = self._measures(rollout, metrics, step)
        found = self._spikes(metrics) | self._beyond_limits(measured)
        for name, (severity, text) in found.items():
            if severity >= WORSE * self._said.get(name, 0.0):
                self._said[name] = severity
                self.news.append(f"{name}: {text}")
        fields: dict[str, Any] = {name: measured[name] for name in LOGGED if name in measured}
        return fields | ({"alarms": list(found)} if found else {})

    def state(self) -> dict[str, Any]:
        """Return what has to be remembered to go on, for JSON."""
        return {"first": self._first, "recent": self._recent, "said": self._said}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._first, self._recent, self._said = state["first"], state["recent"], state["said"]

    def _measures(self, rollout: Rollout, metrics: Mapping[str, Any], step: int) -> dict[str, float]:
        measured = text_measures(rollout, self._setup.student.stop_ids)
        if "reward" in rollout.values:
            measured["equal_rewards"] = float(all_equal([row[0] for row in rollout.values["reward"] if row]))
        ratio, outside = entropy_ratio(metrics), self._mass_outside(rollout, step)
        return measured | {
            name: value
            for name, value in (("entropy_ratio", ratio), ("teacher_mass_outside", outside))
            if value is not None and math.isfinite(value)
        }

    def _mass_outside(self, rollout: Rollout, step: int) -> float | None:
        """Measured at the first step and after every evaluation only: it takes the teacher's whole head."""
        setup, every = self._setup, self._setup.recipe.evaluation.every
        teacher, vocabulary = setup.teacher, setup.vocabulary
        if teacher is None or vocabulary is None or teacher.model is None or isinstance(teacher, TopKTeacher):
            return None
        due = step == 0 or (every and step % every == 0)
        if not due or teacher.head.vocabulary == vocabulary or not rollout.positions:
            return None
        part = rollout.micro_batches(setup.recipe.train.micro_batch_tokens)[0]
        return mass_outside(teacher, part.select(range(min(SEQUENCES, len(part)))), vocabulary)

    def _beyond_limits(self, measured: Mapping[str, float]) -> dict[str, tuple[float, str]]:
        for name, value in measured.items():
            first = self._first.setdefault(name, [])
            if len(first) < WINDOW:
                first.append(value)
            self._remember(name, value, WINDOW)
        return {
            limit.name: beyond
            for limit in LIMITS
            if limit.measure in measured and (beyond := self._beyond(limit)) is not None
        }

    def _beyond(self, limit: Limit) -> tuple[float, str] | None:
        """How far a measure is beyond its limit, and in words; `None` if it is not."""
        first, recent = self._first[limit.measure], self._recent[limit.measure][-limit.window :]
        if len(recent) < limit.window:
            return None
        mean = fmean(recent)
        if limit.relative and (limit.below and fmean(self._first["ended"]) < 0.5):
            return None  # the first ones were cut: that they are shorter now may be just what is wanted
        value = mean / max(fmean(first), 1e-9) if limit.relative else mean
        severity = limit.severity(value)
        if severity <= 1:
            return None
        over = f"mean of {limit.window} steps, " if limit.window > 1 else ""
        bound = f"{limit.bound:g} of the first {WINDOW} steps' {fmean(first):.3g}" if limit.relative else limit.bound
        side = "below" if limit.below else "above"
        return severity, f"{limit.measure} is {mean:.3g} ({over}an alarm {side} {bound}); {limit.advice}"

    def _spikes(self, metrics: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
        """Losses far above those of the steps before."""
        found = {}
        for name in SPIKING:
            value = metrics.get(name)
            if value is None or not math.isfinite(value):
                continue
            before = self._recent.get(name, [])
            if len(before) >= SPIKE_LEAST:
                mean = fmean(before)
                sigma = max(pstdev(before, mean), SPIKE_SCATTER * abs(mean), 1e-9)
                severity = (value - mean) / (SPIKE_SIGMAS * sigma)
                if severity > 1:
                    text = f"{value:.4g}, {severity * SPIKE_SIGMAS:.0f} standard deviations above the last steps' mean"
                    found[f"{name} spike"] = (severity, f"{text} {mean:.4g}; {SPIKE_ADVICE}")
            self._remember(name, value, SPIKE_WINDOW)
        return found

    def _remember(self, name: str, value: float, window: int) -> None:
        recent = self._recent.setdefault(name, [])
        recent.append(value)
        del recent[:-window]
