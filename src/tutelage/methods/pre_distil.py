"""Pre-distillation: the student is first made to look like the teacher inside, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, LossTemperature, NonNegative
from tutelage.errors import InputError
from tutelage.methods.objective import Context, Modules, Plan, Terms
from tutelage.methods.token_matching import comparison_metrics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import LocalTeacher, Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources

Layer = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreDistil:
    """Cross-entropy, word-level KL and a regression on hidden states, on the data's text: a start for f-distill.

    Each of some layers of the student, through one learned linear map of its width to the teacher's, regresses on
    a layer of the teacher. Decoder layers only, in encoder-decoder models too.

    Formula: Σ_t [a (−log q(y_t)) + b KL(p_t‖q_t) + c Σ_(l,k) ‖W h_l,t − g_k,t‖² / width], with h the student's
    states, g the teacher's, W the map.

    Reference: Shleifer & Rush 2020, as f-distill's repository uses it. Differs: the map, which lets the widths
    differ; the encoder's states are left alone.
    """

    name: Literal["pre-distil"] = "pre-distil"
    cross_entropy: NonNegative = 0.2
    """a: weight of the cross-entropy with the text."""
    word: NonNegative = 0.8
    """b: weight of the KL to the teacher at each token."""
    hidden: NonNegative = 3.0
    """c: weight of the regression on hidden states."""
    temperature: LossTemperature = 1.0
    layers: dict[Layer, Layer] | None = None
    """Which layer of the teacher each layer of the student regresses on, counted from 0: `{0: 3, 1: 7}`. By default
    all of the student's, spread evenly up to the teacher's last."""
    projection_learning_rate: NonNegative = 1.0
    """Learning rate of the map, as a multiple of the student's."""

    @model_validator(mode="after")
    def _some_layers(self) -> PreDistil:
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: leave it out, or name at least one pair of layers")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Yes."""
        return True

    @property
    def plan(self) -> Plan:
        """The student and the map learn in the same pass."""
        return Plan(
            phases=(("student", "projection"),),
            learning_rates={"projection": self.projection_learning_rate},
            asks_of_fixed_text="layers",
        )

    def sampler(self, sources: Sources) -> Sampler:
        """The data's responses."""
        return sources.data()

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """The map from the student's width to the teacher's; it begins as the identity where they are equal.

        Raises:
            InputError: the teacher has no layers to look at, or `layers` names one that is not there.
        """
        import torch

        local = _local(teacher)
        pairs = self.pairs(student.layers, local.model.layers)
        self._check(pairs, student.layers, local.model.layers)
        wide, narrow = local.head.weight.shape[1], student.head.weight.shape[1]
        projection = torch.nn.Linear(narrow, wide, bias=False, device=student.device)
        with torch.no_grad():
            if wide == narrow:
                torch.nn.init.eye_(projection.weight)
            else:
                numbers = torch.randn(wide, narrow, generator=torch.Generator().manual_seed(seed))
                projection.weight.copy_(numbers / narrow**0.5)
        return {"projection": projection}

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Nothing is added."""
        return rollout

    def pairs(self, student_layers: int, teacher_layers: int) -> dict[int, int]:
        """Return the teacher's layer for each layer of the student that regresses on one.

        >>> PreDistil().pairs(3, 12)
        {0: 3, 1: 7, 2: 11}
        """
        if self.layers is not None:
            return dict(self.layers)
        return {
            layer: max(0, round((layer + 1) * teacher_layers / student_layers) - 1) for layer in range(student_layers)
        }

    @staticmethod
    def _check(pairs: Mapping[int, int], student_layers: int, teacher_layers: int) -> None:
        for layer, other in pairs.items():
            if layer >= student_layers or other >= teacher_layers:
                raise InputError(
                    f"method.layers pairs layer {layer} of the student with layer {other} of the teacher, but they "
                    f"have {student_layers} and {teacher_layers} (counted from 0)"
                )

    def units(self, rollout: Rollout) -> Mapping[str, float]:
        """Tokens."""
        return {"student": rollout.positions, "hidden": rollout.positions}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Sums of cross-entropy and KL, and of the regression."""
        import torch

        from tutelage.losses import linear_divergence

        assert modules is not None
        local = _local(teacher)
        pairs = self.pairs(student.layers, local.model.layers)
        hidden, states = student.layer_states(rollout, list(pairs))
        teacher_hidden, wanted = local.layer_states(rollout, list(pairs.values()))
        ones = torch.ones(rollout.positions, device=student.device, dtype=torch.float64)
        scores = linear_divergence(
            hidden,
            student.head,
            teacher_hidden,
            local.head,
            "forward_kl",
            coefficients=self.word * ones,
            targets=student.targets(rollout, vocabulary),
            cross_entropy=self.cross_entropy * ones,
            temperature=self.temperature,
            vocabulary=vocabulary,
        )
        regression = _regression(modules["projection"], states, wanted)
        metrics = {**comparison_metrics(scores), "hidden": regression.detach()}
        return Terms({"student": scores.total, "hidden": self.hidden * regression}, metrics)


def _regression(projection: nn.Module, states: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance after the map, averaged over the width and summed over layers and positions."""
    import torch

    dtype = next(projection.parameters()).dtype
    found = projection(states.to(dtype))
    wide = torch.promote_types(found.dtype, torch.float32)
    return (found.to(wide) - wanted.to(wide)).square().mean(-1).sum()


def _local(teacher: Teacher | None) -> LocalTeacher:
    from tutelage.models.teachers import LocalTeacher

    if not isinstance(teacher, LocalTeacher):
        raise InputError(
            "pre-distil looks at the teacher's layers, so it needs a teacher in this process (teacher.model)"
        )
    return teacher
