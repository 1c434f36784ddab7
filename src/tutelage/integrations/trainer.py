"""Distillation inside `transformers.Trainer`, for users of its callbacks, of DeepSpeed, or of their own subclass."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import Trainer

from tutelage.errors import InputError
from tutelage.integrations.batches import rollout_of_batch
from tutelage.methods import METHODS, SFT, SeqKD, SupervisedKD, Terms
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher, Teacher
from tutelage.rollouts.rollout import Rollout

ON_FIXED_TEXT = (SFT, SeqKD, SupervisedKD)
"""The methods whose text is all written beforehand, and which train nothing but the student."""


class Comparison(Protocol):
    """What the trainer asks of an objective: those of `ON_FIXED_TEXT`, or one of your own."""

    def units(self, rollout: Rollout) -> Mapping[str, float]:
        """Count what the loss is averaged over, as {"student": count}."""
        ...

    def terms(self, rollout: Rollout, student: Any, teacher: Any, vocabulary: int | None) -> Terms:
        """Return the sum to minimise on a micro-batch, as Terms({"student": sum})."""
        ...


class DistillationTrainer(Trainer):
    """A `transformers.Trainer` whose loss compares a student with a teacher; everything else is the Trainer's.

    Use it where callbacks, DeepSpeed, a collator or a Trainer of your own are there already; `tutelage train` is
    faster and safer, and has the methods in which models write text. The loss of a step is the sum over all tokens
    in the loss of its accumulated batches on all processes, divided by the number of those tokens (of sequences, for
    `reduction="sequence"`), so it does not depend on how the step is cut. Logits of a whole batch never exist.

    Args:
        objective: `SFT`, `SeqKD` or `SupervisedKD` of `tutelage.methods`, or an object with their `units` and
            `terms`. Any divergence: `SupervisedKD(divergence="jsd(0.5)")`.
        teacher: a transformers model, which is frozen and put on the device of the training, or any `Teacher`.
        vocabulary: number of leading ids that both vocabularies share; by default those that both heads have.
        arguments: as `Trainer` takes them. Batches have `labels`, -100 outside the loss.

    Raises:
        InputError: the objective needs text that is written while it trains, or a teacher that is not given; label
            smoothing or a `compute_loss_func` is asked for, or several devices in one process.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *arguments: Any,
        objective: Comparison,
        teacher: nn.Module | Teacher | None = None,
        vocabulary: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        _check(self, objective, teacher)
        self.model_accepts_loss_kwargs = True  # what `loss_is_scaled_for_ga` is called in earlier versions
        self.objective, self.vocabulary = objective, vocabulary
        self.student = LanguageModel(self.accelerator.unwrap_model(self.model))
        if isinstance(teacher, nn.Module):
            teacher = LocalTeacher(LanguageModel(teacher.to(self.args.device)))
        self.teacher = teacher

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """Count the objective's units over the batches of a step, on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        units = torch.tensor(sum(self._units(self._rollout(batch)) for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            units = torch.as_tensor(self.accelerator.gather(units)).sum()
        return batches, units

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch as its share in the step's; of a batch in evaluation, its own average."""
        rollout = self._rollout(inputs)
        units = num_items_in_batch if model.training and num_items_in_batch is not None else self._units(rollout)
        inner = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        with self.accelerator.autocast(), patch.object(inner, "forward", lambda **_: self._total(rollout)):
            loss = model(**inputs) / max(units, 1)  # through what wraps the model, so that its gradients are added up
        if model.training and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the wrapper averages over the processes
        if not return_outputs:
            return loss
        wanted = {name: value for name, value in inputs.items() if name != "labels"}
        return loss, {} if self.compute_metrics is None else model(**wanted)

    def _rollout(self, batch: Any) -> Rollout:
        return rollout_of_batch(batch, encoder_decoder=self.student.is_encoder_decoder)

    def _units(self, rollout: Rollout) -> float:
        return self.objective.units(rollout)["student"]

    def _total(self, rollout: Rollout) -> Tensor:
        if not rollout.positions:  # every weight takes part all the same, as the other processes expect
            trained = [weight for weight in self.student.model.parameters() if weight.requires_grad]
            return torch.stack([0.0 * weight.sum() for weight in trained]).sum()
        return self.objective.terms(rollout, self.student, self.teacher, self.vocabulary).losses["student"]


def _check(trainer: Trainer, objective: Comparison, teacher: object) -> None:
    """Refuse at the start what would be ignored in silence later."""
    name = type(objective).__name__
    if isinstance(objective, tuple(METHODS.values())) and not isinstance(objective, ON_FIXED_TEXT):
        known = ", ".join(kind.__name__ for kind in ON_FIXED_TEXT)
        raise InputError(f"{name} has models write text while they train; use {known}, or tutelage train")
    if teacher is None and isinstance(objective, (SeqKD, SupervisedKD)):
        raise InputError(f"{name} compares with a teacher; give teacher=MODEL")
    if trainer.args.label_smoothing_factor or trainer.compute_loss_func is not None:
        raise InputError("label_smoothing_factor and compute_loss_func have no part in the objective's loss; leave out")
    if trainer.args.n_gpu > 1:
        raise InputError(f"{trainer.args.n_gpu} devices in one process are not supported; start with torchrun")
