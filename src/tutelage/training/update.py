"""One update, whole or not at all: gradients over micro-batches, over the step's counts; checked, clipped, applied."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tutelage.config import Train
from tutelage.methods.objective import Objective, Terms
from tutelage.models.remembering import RememberingTeacher
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.sharding import cut_alike, is_sharded, number
from tutelage.models.teachers import LocalTeacher, Teacher
from tutelage.rollouts.rollout import Rollout, joined
from tutelage.training.nonfinite import StepRefused, Suspect, refusal, suspect_in_text
from tutelage.training.optimizer import adamw, learning_rate
from tutelage.training.out_of_memory import Size, padded_size
from tutelage.training.setup import Setup
from tutelage.training.undo import Undo
from tutelage.world import world

Sums = defaultdict[str, float]
Share = tuple[dict[str, float], list[float]]
Pass = tuple[Rollout, bool]
"""A micro-batch, and whether it counts."""


class Updater:
    """The trainable modules of a run with their optimisers.

    Args:
        setup: models and recipe.
        micro_batch: tokens in one forward pass; halved here when memory runs out.
    """

    def __init__(self, setup: Setup, micro_batch: Size) -> None:
        self._setup, self._micro_batch = setup, micro_batch
        self._train: Train = setup.recipe.train
        self._objective: Objective = setup.recipe.method
        self._teacher: Teacher | None = setup.teacher
        self.own = self._objective.modules(setup.student, setup.teacher, setup.recipe.seed)
        """The method's own modules, cut where the student is."""
        for module in self.own.values():
            cut_alike(module, setup.student.model)
        self.modules: dict[str, nn.Module] = {"student": setup.student.model, **self.own}
        self.optimizers = {name: adamw(module, self._train) for name, module in self.modules.items()}

    def autocast(self) -> AbstractContextManager:
        """The precision that the recipe asks for."""
        device = self._setup.student.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._train.precision == "bfloat16")

    def step(self, rollout: Rollout, step: int, commit: Callable[[], None] = lambda: None) -> Sums:
        """Update the modules that the method's plan names, phase by phase.

        Each phase is checked before it is applied. Where a later one fails, the earlier ones of the step are undone.

        Args:
            rollout: the batch.
            step: counted from 0.
            commit: called when the gradients of a phase are good, right before they change weights.

        Returns:
            Sums by the names of the method's metrics, `count/<metric>` for those with a count of their own, the
            loss, and the norm of each module's gradient before clipping as `gradient_norm` (the student's) or
            `gradient_norm/<module>`.

        Raises:
            StepRefused: a number is not finite, or nothing is in the loss; everything is as it was before the step.
            DoesNotFitError: memory ran out with one sequence at a time; likewise.
        """
        phases = self._objective.plan.phases
        if not rollout.positions or not self._units(rollout):
            raise StepRefused(f"none of the {len(rollout)} sequences has a token in the loss")
        suspect = suspect_in_text(rollout)
        if suspect is not None:
            raise self._refusal("a number that came with the text is not finite", rollout, phases[-1], suspect=suspect)
        undo = Undo(self.modules, self.optimizers, dict.fromkeys(name for phase in phases[:-1] for name in phase))
        sums: Sums = defaultdict(float)
        # A teacher that is cut over the processes is asked anew, so that all of them ask it equally often.
        if len(phases) > 1 and self._setup.teacher is not None and not _is_cut(self._setup.teacher):
            self._teacher = RememberingTeacher(self._setup.teacher)
        try:
            for training in phases:
                sums.update(self._gradients_of_phase(rollout, training))  # a later phase has the last word
                self._check_and_clip(rollout, training, sums)
                commit()
                self._apply(training, step)
        except BaseException:
            undo()
            self._forget_gradients()
            raise
        finally:
            self._teacher = self._setup.teacher
        return sums

    def _gradients_of_phase(self, rollout: Rollout, training: Sequence[str]) -> Sums:
        """The gradients of a phase, in micro-batches as large as fit: their sum does not depend on the size.

        Each process takes its share of the sequences, and all end with the sum over the processes.
        """
        term_by_term = self._objective.plan.separate_norms and "student" in training
        return (self._gradients_term_by_term if term_by_term else self._gradients)(rollout, training)

    def _gradients(self, rollout: Rollout, training: Sequence[str], only: str | None = None) -> Sums:
        """Add up the gradients of all micro-batches, each term divided by its units in the whole step."""
        everyone, units = world(), self._units(rollout)
        share = self._share_of_gradients(rollout, units, training, only)
        shares = everyone.gather((*share, self._micro_batch.value))
        self._micro_batch.value = min(size for _, _, size in shares)  # what fits everywhere
        losses = [loss for _, found, _ in shares for loss in found]
        wrong = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is not None:
            raise self._refusal(f"the loss is {losses[wrong]}", rollout, training, losses[: wrong + 1])
        total: Sums = defaultdict(float)
        for sums, _, _ in shares:
            for name, value in sums.items():
                total[name] += value
        self._add_gradients(training)
        return total

    def _share_of_gradients(
        self, rollout: Rollout, units: Mapping[str, float], training: Sequence[str], only: str | None
    ) -> Share:
        """The gradients of the sequences of this process, as many of them at a time as fit."""
        if is_sharded(self._setup.student.model) or _is_cut(self._setup.teacher):
            passes = self._passes_of_all(rollout)
            self._ask_ahead([part for part, _ in passes], wait=True)
            return self._own_gradients(passes, units, training, only)
        mine = rollout.select(_spread(rollout)) if world().size > 1 else rollout
        self._ask_ahead(mine.micro_batches(self._micro_batch.value), wait=False)  # first what is needed first
        return world().agreed(
            lambda: self._micro_batch.fitting(
                lambda tokens: self._own_gradients(
                    [(part, True) for part in mine.micro_batches(tokens)], units, training, only
                ),
                largest=padded_size(mine),
                least=max(mine.lengths, default=1),
            )
        )

    def _passes_of_all(self, rollout: Rollout) -> list[Pass]:
        """The passes of this process where models are cut, so that each pass takes all processes.

        All make the same ones: as many of each writer's text, which methods may treat each in its own way. Those that
        have fewer micro-batches make passes that count for nothing. None can start again when memory runs out.
        """
        passes: list[Pass] = []
        for writer in dict.fromkeys(rollout.writers):
            text = rollout.select([row for row, name in enumerate(rollout.writers) if name == writer])
            parts = text.select(_spread(text)).micro_batches(self._micro_batch.value)
            most = max(world().gather(len(parts)))
            passes += [(part, True) for part in parts]
            passes += [((parts or [text.select([0])])[-1], False)] * (most - len(parts))
        return passes

    def _ask_ahead(self, parts: Sequence[Rollout], *, wait: bool) -> None:
        """Ask a served teacher all that the next passes need; with `wait` it fails before them, in all processes."""
        teacher, vocabulary = self._setup.teacher, self._setup.vocabulary
        if isinstance(teacher, ServedTeacher):
            assert vocabulary is not None
            world().agreed(lambda: teacher.ask_ahead(joined(parts), vocabulary, wait=wait))

    def _own_gradients(
        self, passes: Sequence[Pass], units: Mapping[str, float], training: Sequence[str], only: str | None
    ) -> Share:
        """Go over micro-batches, of which some leave no gradient behind."""
        self._forget_gradients()
        sums: Sums = defaultdict(float)
        losses: list[float] = []
        for part, counts in passes:
            terms = self._terms(part, training)
            loss = _loss(terms, units, only)
            if loss is None:
                continue
            if not counts:
                (loss * 0.0).backward()
                continue
            losses.append(loss.item())
            loss.backward()
            sums["loss"] += losses[-1]
            for name, value in terms.metrics.items():
                sums[name] += value.item()
            for name, count in terms.counts.items():
                sums[f"count/{name}"] += count
        return dict(sums), losses

    def _add_gradients(self, training: Sequence[str]) -> None:
        """Sum gradients over the processes; those of models that are cut over them were summed by the backward pass."""
        everyone = world()
        if everyone.size == 1:
            return
        parameters = [p for name in training for p in self.modules[name].parameters() if p.requires_grad]
        having = [any(flags) for flags in zip(*everyone.gather([p.grad is not None for p in parameters]), strict=True)]
        touched = [p for p, has in zip(parameters, having, strict=True) if has and not isinstance(p, DTensor)]
        for parameter in touched:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        everyone.add(parameter.grad for parameter in touched)

    def _gradients_term_by_term(self, rollout: Rollout, training: Sequence[str]) -> Sums:
        """The same, one pass a term, with the norm of each term's gradient of the student."""
        parameters = [p for name in training for p in self.modules[name].parameters() if p.requires_grad]
        total: dict[nn.Parameter, Tensor] = {}
        sums: Sums = defaultdict(float)
        for name in self._units(rollout):
            found = self._gradients(rollout, training, only=name)
            loss = sums["loss"] + found["loss"]
            sums.update(found)
            sums["loss"] = loss
            mine = [p.grad for p in self.modules["student"].parameters() if p.grad is not None]
            sums[f"gradient_norm/{name}"] = number(nn.utils.get_total_norm(mine))
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
            return self._objective.terms(part, setup.student, self._teacher, setup.vocabulary, self.own, training)

    def _units(self, rollout: Rollout) -> dict[str, float]:
        return {name: count for name, count in self._objective.units(rollout).items() if count}

    def _check_and_clip(self, rollout: Rollout, training: Sequence[str], sums: Sums) -> None:
        """Clip the gradients of the modules in training, and add their norms to the sums."""
        for name in training:
            parameters = [p for p in self.modules[name].parameters() if p.grad is not None]
            norm = number(nn.utils.clip_grad_norm_(parameters, self._train.clip_norm or math.inf))
            sums["gradient_norm" if name == "student" else f"gradient_norm/{name}"] = norm
            if not math.isfinite(norm):
                raise self._refusal(f"the gradient of the {name} is {norm}", rollout, training, sums=sums)

    def _apply(self, training: Sequence[str], step: int) -> None:
        """Step the optimisers of the modules in training; forget all gradients."""
        rate = learning_rate(self._train, step, self._setup.steps)
        for name in training:
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * self._objective.plan.learning_rates.get(name, 1.0)
            with self._micro_batch.indivisible():
                self.optimizers[name].step()
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)

    def _refusal(
        self,
        quantity: str,
        rollout: Rollout,
        training: Sequence[str],
        losses: Sequence[float] = (),
        sums: Mapping[str, float] | None = None,
        suspect: Suspect | None = None,
    ) -> StepRefused:
        """Say what is not finite, after a second look at where it comes from."""
        units = self._units(rollout)

        def loss_of(part: Rollout) -> Tensor | None:
            return _loss(self._terms(part, training), units)

        self._forget_gradients()
        self._ask_ahead([rollout], wait=True)
        with self.autocast():
            refused = refusal(quantity, rollout, self._setup, self.modules, loss_of, suspect)
        self._forget_gradients()
        refused.training, refused.losses = training, losses
        refused.sums = sums or {"loss": losses[-1] if losses else math.nan}
        return refused


def _is_cut(teacher: Teacher | None) -> bool:
    return isinstance(teacher, LocalTeacher) and is_sharded(teacher.model.model)


def _spread(rollout: Rollout) -> list[int]:
    """The sequences of this process: every so-manyth of those in order of length, so that all have about as much."""
    order = sorted(range(len(rollout)), key=lambda row: (-rollout.lengths[row], row))
    return [order[at] for at in world().share(len(order))]


def _loss(terms: Terms, units: Mapping[str, float], only: str | None = None) -> Tensor | None:
    """The share of a micro-batch in the loss of the step; `None` if it has none."""
    shares = [terms.losses[n] / units[n] for n in terms.losses if n in units and only in (None, n)]
    return torch.stack(shares).sum() if shares else None
