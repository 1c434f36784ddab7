"""Teacher-mixed sampling: at every step the next token comes from a mixture of the teacher and the student."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.models.language_model import LanguageModel
from tutelage.rollouts.decoding import OneModel, decode, evaluating, places_of, shared_out
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.rollouts.samplers import Stateless, several
from tutelage.rollouts.sampling import softmax_
from tutelage.rollouts.writing import Place, Written, write


class MixedPolicy:
    """Student and teacher reading the same sequences, token by token.

    Formula: log p̃ = log(α·p + (1 − α)·q), the mixture of probabilities after the temperature; its
    log-probabilities are the logits that are drawn from.

    Args:
        student: q.
        teacher: p; may be on another device.
        teacher_share: α, strictly between 0 and 1.
        temperature: divides both models' logits.
        vocabulary: number of leading ids that both have; no others are written.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: LanguageModel,
        teacher_share: float,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> None:
        shared = vocabulary or min(student.head.vocabulary, teacher.head.vocabulary)
        self._student = OneModel(student, temperature, shared)
        self._teacher = OneModel(teacher, temperature, shared)
        self._teacher_device, self._teacher_share = teacher.device, teacher_share

    @property
    def joins(self) -> bool:
        """Whether new prompts may join sequences that are under way, which both models have to allow."""
        return self._student.joins and self._teacher.joins

    def read(self, prompts: Sequence[Ids]) -> Tensor:
        """Read prompts; return log p̃ of their first tokens."""
        return self._mixed(self._student.read(prompts), self._teacher.read(prompts))

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence; return log p̃ of the next."""
        return self._mixed(self._student.step(tokens), self._teacher.step(tokens.to(self._teacher_device)))

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only, in this order."""
        self._student.keep(rows)
        self._teacher.keep(rows)

    def _mixed(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        student, teacher = softmax_(student_logits), softmax_(teacher_logits).to(student_logits)
        return student.lerp_(teacher, self._teacher_share).log_()


def decode_mixed(
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: Sequence[Ids],
    decoding: Decoding,
    *,
    teacher_share: float,
    seed: int,
    places: Sequence[Place] | None = None,
    items: Sequence[int] | None = None,
    vocabulary: int | None = None,
) -> Rollout:
    """Write one response to each prompt from the mixture of teacher and student.

    A share of 0 is `decode` of the student and a share of 1 that of the teacher: the other model is not run.

    Args:
        student: the model that learns; its `stop_ids` end a response.
        teacher: the model that knows.
        prompts: ids, none of them empty.
        decoding: temperature, truncation (of the mixture), length, batch size; the strategy `sample`.
        teacher_share: α, in [0, 1].
        seed: the run's seed.
        places: what distinguishes the draws of one prompt from another's.
        items: which row of the data each prompt is, for the rollout.
        vocabulary: number of leading ids that both vocabularies share; no others are written.

    Returns:
        A rollout in the order of the prompts with log p̃ of every token.

    Raises:
        ValueError: the strategy is not `sample`, or the student has no stop ids.

    Reference: MiniLLM (arXiv 2306.08543), Eq. 4.
    """
    if decoding.strategy != "sample":
        raise ValueError(f"a mixture of two models is sampled from (got the strategy '{decoding.strategy}')")
    if teacher_share in (0, 1):
        model = student if teacher_share == 0 else teacher
        writer = "student" if teacher_share == 0 else "teacher"
        return decode(
            model, prompts, decoding, seed=seed, places=places, items=items, writer=writer, vocabulary=vocabulary
        )

    prompts, places = [tuple(prompt) for prompt in prompts], places_of(prompts, places, student)

    def written(prompts: list[Ids], places: list[Place]) -> Written:
        return write(
            MixedPolicy(student, teacher, teacher_share, decoding.temperature, vocabulary),
            prompts,
            places,
            decoding,
            stop_ids=student.stop_ids,
            seed=seed,
            device=student.device,
            histories=[()] * len(prompts) if student.is_encoder_decoder else prompts,
        )

    with evaluating(student, teacher):
        responses, logps = shared_out(written, prompts, places)
    return Rollout.of(prompts, responses, writer="mixed", items=items, logps=logps)


@dataclass(frozen=True)
class MixedSampler(Stateless):
    """Text written by the mixture of the teacher and the student as it is now."""

    student: LanguageModel
    teacher: LanguageModel
    teacher_share: float
    decoding: Decoding
    seed: int
    vocabulary: int | None = None
    samples: int = 1
    """Responses to each prompt."""

    def sample(self, examples: Sequence[Example], step: int) -> Rollout:
        """Write the responses to each prompt, those to the same prompt one after the other."""
        return decode_mixed(
            self.student,
            self.teacher,
            decoding=self.decoding,
            teacher_share=self.teacher_share,
            seed=self.seed,
            vocabulary=self.vocabulary,
            **several(examples, step, self.samples),
        )
