"""Methods that learn from text written beforehand: SFT, SeqKD and supervised (word-level) KD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, BeamDecoding, CrossEntropyShare, Decoding, Reduction
from tutelage.methods.objective import Direct, Modules, Terms, count_units
from tutelage.methods.token_matching import TokenMatching, cross_entropy_terms

if TYPE_CHECKING:
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import Teacher
    from tutelage.rollouts.rollout import Rollout
    from tutelage.rollouts.samplers import Sampler, Sources


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SFT(Direct):
    """Supervised fine-tuning on the data's responses: no teacher; the start and the yardstick of the others.

    Formula: −Σ_t log q(y_t | y_<t, x), on the responses of the data.
    """

    name: Literal["sft"] = "sft"
    reduction: Reduction = "token"

    @property
    def needs_teacher(self) -> bool:
        """No."""
        return False

    def sampler(self, sources: Sources) -> Sampler:
        """The data's responses."""
        return sources.data()

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Tokens or sequences."""
        return {"student": count_units(rollout, self.reduction)}

    def terms(
        self,
        rollout: Rollout,
        student: LanguageModel,
        teacher: Teacher | None,
        vocabulary: int | None = None,
        modules: Modules | None = None,
        training: Sequence[str] = ("student",),
    ) -> Terms:
        """Sum of the cross-entropy."""
        return cross_entropy_terms(rollout, student, self.reduction)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SeqKD(TokenMatching):
    """Sequence-level KD: fine-tuning on text that the teacher wrote, one response a prompt, kept on disk.

    Needs prompts only. `cross_entropy: 0.5` is the variant of MiniLLM's repository (half token-level KD), `0` that
    of DistiLLM's. A teacher with another tokenizer writes its text by `tutelage generate`, for `sft`.

    Reference: Kim & Rush 2016 (beam search); MiniLLM's repository samples the teacher.
    """

    name: Literal["seqkd"] = "seqkd"
    cross_entropy: CrossEntropyShare = 1.0
    teacher_decoding: BeamDecoding = Field(default_factory=lambda: Decoding(strategy="beam", beams=5))
    """How the teacher writes."""

    def sampler(self, sources: Sources) -> Sampler:
        """The teacher."""
        return sources.teacher(self.teacher_decoding)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SupervisedKD(TokenMatching):
    """Word-level KD: match the teacher's distribution at each token of the data's responses.

    Reference: GKD (arXiv 2306.13649), L_SD; MiniLLM's repository uses `cross_entropy: 0.5`.
    """

    name: Literal["supervised-kd"] = "supervised-kd"

    def sampler(self, sources: Sources) -> Sampler:
        """The data's responses."""
        return sources.data()
