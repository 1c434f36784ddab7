"""Steps that were refused: written out, counted, and skipped within a budget."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import DivergedError
from tutelage.rollouts.rollout import Rollout
from tutelage.training.nonfinite import StepRefused, Suspect
from tutelage.training.setup import Setup
from tutelage.training.tracking import valid_json
from tutelage.world import world

_ADVICE = {
    "teacher": "the teacher is at fault: check its dtype (bfloat16 has a wider range than float16) and that row",
    "reward": "the reward is at fault: it must give a finite number for every response",
    "critic": "a critic is at fault: lower method.critic_rate",
}
"""By a word in what was found; the first that fits."""
_OTHER = "lower train.learning_rate, add train.warmup_steps, keep student.dtype float32"


class BadBatches:
    """Decides what becomes of a step that was refused.

    Args:
        setup: rows, tokenizer and recipe.
        note: told in one line about every skipped step.
    """

    def __init__(self, setup: Setup, note: Callable[[str], None]) -> None:
        self._setup, self._note, self._train = setup, note, setup.recipe.train
        self.skipped = 0
        """Steps skipped so far, part of the run's state."""

    def take(self, refused: StepRefused, rollout: Rollout, step: int) -> Mapping[str, float]:
        """Write the batch out; count the step as skipped, or end the run.

        Args:
            refused: why.
            rollout: the batch.
            step: counted from 0.

        Returns:
            What the metrics of the step are made of.

        Raises:
            DivergedError: the recipe says stop, or the budget is spent.
        """
        path = self._setup.folder / f"bad_batch_{step + 1}.json"
        world().main_does(lambda: self._write(path, refused, rollout, step))
        text = f"{refused} at step {step + 1}{self._cause(refused.suspect, rollout)}"
        skipping, budget = self._train.on_nonfinite == "skip", self._train.nonfinite_budget
        if skipping and self.skipped < budget:
            self.skipped += 1
            self._note(f"skipped ({self.skipped} of {budget} that may be): {text}; see {path}")
            return refused.sums
        spent = f" {budget} steps were skipped before, which is train.nonfinite_budget." if skipping else ""
        hint = "" if skipping else " train.on_nonfinite skip passes over such a step."
        raise DivergedError(
            f"{text}; the weights of step {step} are kept, and the batch is in {path}.{spent} {_advice(refused)}.{hint}"
        )

    def metrics(self) -> dict[str, int]:
        """Return the count for the metrics, nothing as long as nothing was skipped."""
        return {"skipped_steps": self.skipped} if self.skipped else {}

    def _cause(self, suspect: Suspect | None, rollout: Rollout) -> str:
        if suspect is None:
            return ""
        found = f" ({suspect.what}" + ("" if suspect.id is None else f": id {suspect.id}")
        if suspect.sequence is not None:
            found += f"; {self._where(rollout, suspect.sequence)}"
        if suspect.position is not None:
            found += f", token {suspect.position + 1} of the response"
        return f"{found})"

    def _where(self, rollout: Rollout, sequence: int) -> str:
        item = rollout.items[sequence]
        if rollout.writers[sequence] == "text":
            return f"row {item + 1} of the step's plain text"
        return self._setup.texts.train[item].where

    def _write(self, path: Path, refused: StepRefused, rollout: Rollout, step: int) -> None:
        suspect = refused.suspect
        content = {
            "step": step + 1,
            "quantity": refused.quantity,
            "updated": list(refused.training),
            "suspect": None if suspect is None else vars(suspect),
            "micro_batch_losses": list(refused.losses),
            "sequences": [self._sequence(refused, rollout, number) for number in range(len(rollout))],
        }
        path.write_text(json.dumps(valid_json(content), indent=1, ensure_ascii=False), encoding="utf-8")

    def _sequence(self, refused: StepRefused, rollout: Rollout, number: int) -> dict[str, Any]:
        prompt, response = rollout.prompts[number], rollout.responses[number]
        return {
            "item": rollout.items[number],
            "row": self._where(rollout, number),
            "writer": rollout.writers[number],
            "loss": refused.sequence_losses[number] if refused.sequence_losses else None,
            "prompt": self._setup.tokenizer.decode(list(prompt)),
            "response": self._setup.tokenizer.decode(list(response)),
            "prompt_ids": prompt,
            "response_ids": response,
            "mask": rollout.masks[number],
            "logps": None if rollout.logps is None else rollout.logps[number],
            "values": {name: column[number] for name, column in rollout.values.items()},
        }


def _advice(refused: StepRefused) -> str:
    seen = f"{refused.suspect.what if refused.suspect else ''} {' '.join(refused.training)}"
    return next((advice for word, advice in _ADVICE.items() if word in seen), _OTHER)
