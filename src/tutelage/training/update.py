"""One update: gradients over micro-batches, divided by the step's counts; checked, clipped, applied."""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from tutelage.config import Train
from tutelage.errors import DivergedError
from tutelage.methods.objective import Objective, Terms
from tutelage.rollouts.rollout import Rollout
from tutelage.training.optimizer import adamw, learning_rate
from tutelage.training.setup import Setup

Sums = defaultdict[str, float]


class Updater:
    """The trainable modules of a run with their optimisers.

    Args:
        setup: models and recipe.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._train: Train = setup.recipe.train
        self._objective: Objective = setup.recipe.method
        self.own = self._objective.modules(setup.student, setup.teacher, setup.recipe.seed)
        """The method's own modules."""
        self.modules: dict[str, nn.Module] = {"student": setup.student.model, **self.own}
        self.optimizers = {name: adamw(module, self._train) for name, module in self.modules.items()}

    def autocast(self) -> AbstractContextManager:
        """The precision that the recipe asks for."""
        device = self._setup.student.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._train.precision == "bfloat16")

    def step(self, rollout: Rollout, step: int) -> Sums:
        """Update the modules that the method's plan names, phase by phase.

        Returns:
            Sums by the names of the method's metrics, `count/<metric>` for those with a count of their own, the
            loss, and the norm of each module's gradient before clipping as `gradient_norm` (the student's) or
            `gradient_norm/<module>`.

        Raises:
            DivergedError: a loss or a gradient is not finite; the update it belongs to was not applied.
        """
        sums: Sums = defaultdict(float)
        for training in self._objective.plan.phases:
            if self._objective.plan.separate_norms and "student" in training:
                found = self._gradients_term_by_term(rollout, training, step)
            else:
                found = self._gradients(rollout, training, step)
            sums.update(found)  # a later phase has the last word
            self._apply(training, step, sums)
        return sums

    def _gradients(self, rollout: Rollout, training: Sequence[str], step: int, only: str | None = None) -> Sums:
        """Add up the gradients of all micro-batches, each term divided by its units in the whole step."""
        units = {name: count for name, count in self._objective.units(rollout).items() if count}
        if not units:
            raise DivergedError(f"step {step + 1}: none of the {len(rollout)} sequences has a token in the loss")
        sums: Sums = defaultdict(float)
        for part in rollout.micro_batches(self._train.micro_batch_tokens):
            terms = self._terms(part, training)
            wanted = [n for n in terms.losses if n in units and only in (None, n)]
            if not wanted:
                continue
            loss = torch.stack([terms.losses[name] / units[name] for name in wanted]).sum()
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"the loss is {loss.item()} at step {step + 1}; the weights of step {step} are kept"
                )
            loss.backward()
            sums["loss"] += loss.item()
            for name, value in terms.metrics.items():
                sums[name] += value.item()
            for name, count in terms.counts.items():
                sums[f"count/{name}"] += count
        return sums

    def _gradients_term_by_term(self, rollout: Rollout, training: Sequence[str], step: int) -> Sums:
        """The same, one pass a term, with the norm of each term's gradient of the student."""
        parameters = [p for name in training for p in self.modules[name].parameters() if p.requires_grad]
        total: dict[nn.Parameter, Tensor] = {}
        sums: Sums = defaultdict(float)
        for name, count in self._objective.units(rollout).items():
            if not count:
                continue
            found = self._gradients(rollout, training, step, only=name)
            loss = sums["loss"] + found["loss"]
            sums.update(found)
            sums["loss"] = loss
            mine = [p.grad for p in self.modules["student"].parameters() if p.grad is not None]
            sums[f"gradient_norm/{name}"] = nn.utils.get_total_norm(mine).item()
            for parameter in parameters:
                if parameter.grad is not None:
                    total[parameter] = total[parameter] + parameter.grad if parameter in total else parameter.grad
                    parameter.grad = None
        for parameter, gradient in total.items():
            parameter.grad = gradient
        return sums

    def _terms(self, part: Rollout, training: Sequence[str]) -> Terms:
        setup = self._setup
        with self.autocast():
            return self._objective.terms(part, setup.student, setup.teacher, setup.vocabulary, self.own, training)

    def _apply(self, training: Sequence[str], step: int, sums: Sums) -> None:
        """Check, clip and apply the gradients of the modules in training; forget those of the others."""
        norms = {name: self._clipped_norm(name, step) for name in training}
        rate = learning_rate(self._train, step, self._setup.steps)
        for name, norm in norms.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * self._objective.plan.learning_rates.get(name, 1.0)
            self.optimizers[name].step()
            sums["gradient_norm" if name == "student" else f"gradient_norm/{name}"] = norm
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)

    def _clipped_norm(self, name: str, step: int) -> float:
        parameters = [p for p in self.modules[name].parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self._train.clip_norm or math.inf).item()
        if not math.isfinite(norm):
            raise DivergedError(
                f"the gradient of the {name} is {norm} at step {step + 1}; the weights of step {step} are kept"
            )
        return norm
