"""What every method is: a frozen dataclass of hyper-parameters that names its sampler and computes its loss.

A method is configuration and runtime in one. It says who writes the text (`sampler`), how a collection of text
is used (`plan`), which modules of its own are trained (`modules`), what is computed once for a collection
(`prepare`), by what count the loop divides (`units`), and the *sums* to minimise (`terms`); averages are the
loop's business. Modules here import torch only inside functions, so that a recipe is checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tutelage.config import Reduction

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from tutelage.data import Example
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources

Modules = Mapping[str, "nn.Module"]


@dataclass(frozen=True)
class Plan:
    """How the loop uses the text that a method samples."""

    collection: int | None = None
    """Prompts sampled at once; `None` is one batch."""
    inner_epochs: int = 1
    """Passes over a collection, a batch a step, before the next one is sampled."""
    phases: tuple[tuple[str, ...], ...] = (("student",),)
    """The modules updated in each pass of a step, one pass after the other on the same batch."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates of the method's own modules, as multiples of the student's."""
    text_rows: int = 0
    """Rows of plain text (`data.text`) added to every batch."""
    follows_loss: bool = False
    """The sampler goes by the validation loss, so the recipe has to measure it now and then."""
    separate_norms: bool = False
    """Log the gradient norm of each term on its own; costs one more pass a term."""
    asks_of_fixed_text: Literal["nothing", "distribution", "states", "layers"] = "states"
    """What the teacher is asked about text that was written beforehand: nothing, no more than a comparison of
    distributions (`Teacher.compare`), its final hidden states, or those of its layers. A teacher's cache has to give
    that much."""
    bridges_tokenizers: bool = False
    """The teacher reads the text with a tokenizer of its own (`BridgedTeacher`), so ids need not be the same."""


@dataclass(frozen=True)
class Terms:
    """What a method returns for one micro-batch: sums, never means."""

    losses: Mapping[str, Tensor]
    """One scalar for each term, by the names of `units`; what is minimised is the sum of term / units."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached sums over the positions, in nats or counts."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What a metric is averaged over in this micro-batch, where that is not the positions, by its name."""


@dataclass(frozen=True)
class Context:
    """What `prepare` may use besides the text itself."""

    student: LanguageModel
    teacher: Teacher | None
    vocabulary: int | None
    modules: Modules
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    """The row of the data behind each sequence of the rollout."""
    micro_batch_tokens: int
    """Tokens in one forward pass."""
    progress: float = 0.0
    """Share of the run's steps that were done when the collection was sampled."""


class Objective(Protocol):
    """The interface between a method and the loop."""

    @property
    def name(self) -> str:
        """The method's name in recipes."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to be loaded."""
        ...

    @property
    def plan(self) -> Plan:
        """How the text is used."""
        ...

    def sampler(self, sources: Sources) -> Sampler:
        """Say who writes the text."""
        ...

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """Build the method's own trainable modules, such as critics."""
        ...

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Add the values that stay fixed while a collection is used: rewards, advantages, old log-probabilities."""
        ...

    def units(self, rollout: Rollout) -> Mapping[str, float]:
        """Count what each term is averaged over; the loop adds the counts up over micro-batches and processes."""
        ...

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Compute the sums to minimise on a micro-batch.

        Args:
            rollout: the micro-batch, as `prepare` left it.
            student: receives gradients where it is among `training`.
            teacher: receives none; may be `None` where `needs_teacher` is false.
            vocabulary: number of leading ids that both vocabularies share.
            modules: the method's own modules.
            training: names of the modules that this pass updates (`student` or own ones).
        """
        ...


class Direct:
    """Part of the methods that update the student once from every batch and train nothing else."""

    @property
    def needs_teacher(self) -> bool:
        """Yes: only fine-tuning does without."""
        return True

    @property
    def plan(self) -> Plan:
        """One batch, one step."""
        return Plan()

    def modules(self, student: LanguageModel, teacher: Teacher | None, seed: int) -> dict[str, nn.Module]:
        """None."""
        return {}

    def prepare(self, rollout: Rollout, context: Context) -> Rollout:
        """Nothing is added."""
        return rollout


def count_units(rollout: Rollout, reduction: Reduction) -> int:
    """Count tokens in the loss, or sequences that have some."""
    if reduction == "token":
        return rollout.positions
    return sum(1 for positions in rollout.positions_of if positions)


def position_weights(rollout: Rollout, reduction: Reduction) -> list[float]:
    """Return the weight of each position in the sum: 1, or 1 / (positions of its sequence).

    With `sequence`, the sum divided by the number of sequences is the mean over sequences of the mean over
    their tokens (GKD, Eq. 2); with `token`, divided by the number of tokens, the mean over all tokens.
    """
    if reduction == "token":
        return [1.0] * rollout.positions
    return [1.0 / positions for positions in rollout.positions_of for _ in range(positions)]


def added(parts: Sequence[Terms]) -> Terms:
    """Add up the terms of several parts of a micro-batch, name by name."""

    def total(columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = dict.fromkeys(name for column in columns for name in column)
        return {name: sum(column[name] for column in columns if name in column) for name in names}

    return Terms(total([p.losses for p in parts]), total([p.metrics for p in parts]), total([p.counts for p in parts]))
