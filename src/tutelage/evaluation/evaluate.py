"""One evaluation: the metrics that a recipe asks for, and samples to look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.config import Decoding, Evaluation
from tutelage.data import Example
from tutelage.evaluation.agreement import agreement, loss_on
from tutelage.evaluation.distances import moment_distances
from tutelage.evaluation.generated import exact_answer, rouge_l
from tutelage.evaluation.intervals import Measurement
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import Teacher
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.texts import response_texts
from tutelage.world import world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATED = ("exact_answer", "rouge_l")


@dataclass(frozen=True)
class Result:
    """What an evaluation found."""

    metrics: dict[str, Measurement]
    samples: list[dict[str, str]]
    """Some rows with `prompt`, `reference` and `response`."""


def evaluate(
    student: LanguageModel,
    teacher: Teacher | None,
    examples: Sequence[Example],
    config: Evaluation,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    micro_batch_tokens: int,
    seed: int,
    vocabulary: int | None = None,
    critics: Mapping[str, Any] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Measure a student on held-out rows.

    Args:
        student: put into evaluation mode meanwhile.
        teacher: needed for `agreement` and `distances` only.
        examples: held-out rows with responses.
        config: which metrics, and how text is generated for them.
        tokenizer: turns generated ids into text.
        micro_batch_tokens: tokens in one forward pass.
        seed: of sampled text.
        vocabulary: number of leading ids that both vocabularies share.
        critics: `critic_off` and `critic_on` of a run in progress, which `distances` measures with too.
        on_progress: told (what, done, of how many) now and then.
    """
    was_training = student.network.training
    student.network.eval()
    metrics: dict[str, Measurement] = {}
    references = Rollout.of(
        [e.prompt for e in examples], [e.response for e in examples], masks=[e.mask for e in examples]
    )
    if "loss" in config.metrics:
        metrics["loss"] = loss_on(student, references, micro_batch_tokens)
    if "agreement" in config.metrics and teacher is not None:
        metrics |= agreement(student, teacher, references, micro_batch_tokens, vocabulary)
    if "distances" in config.metrics and teacher is not None:
        sampled = Decoding(max_new_tokens=config.decoding.max_new_tokens, batch_size=config.decoding.batch_size)
        own = _write(student, examples, sampled, seed, vocabulary, on_progress)
        options = {"micro_batch_tokens": micro_batch_tokens, "vocabulary": vocabulary, "critics": critics}
        metrics |= moment_distances(student, teacher, references, own, **options)
    samples: list[dict[str, str]] = []
    if any(name in config.metrics for name in GENERATED):
        responses = response_texts(_write(student, examples, config.decoding, seed, vocabulary, on_progress), tokenizer)
        metrics |= _text_metrics(responses, [e.reference for e in examples], config)
        samples = [
            {"prompt": e.prompt_text, "reference": e.reference, "response": response}
            for e, response in list(zip(examples, responses, strict=True))[: config.samples]
        ]
    student.network.train(was_training)
    return Result(metrics, samples)


def _write(
    student: LanguageModel,
    examples: Sequence[Example],
    decoding: Decoding,
    seed: int,
    vocabulary: int | None,
    on_progress: Callable[[str, int, int], None] | None,
) -> Rollout:
    done, share = 0, len(world().share(len(examples)))  # the first process shows how far it is with its own

    def report(more: int) -> None:
        nonlocal done
        done += more
        if on_progress is not None:
            on_progress("generating", done, share)

    return decode(
        student,
        [e.prompt for e in examples],
        decoding,
        seed=seed,
        vocabulary=vocabulary,
        on_progress=report,
    )


def _text_metrics(responses: list[str], references: list[str], config: Evaluation) -> dict[str, Measurement]:
    metrics = {}
    if "exact_answer" in config.metrics:
        metrics["exact_answer"] = exact_answer(responses, references, config.answer)
    if "rouge_l" in config.metrics:
        metrics["rouge_l"] = rouge_l(responses, references)
    return metrics
