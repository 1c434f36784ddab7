"""A run whose student's text is written by servers: what has to fit, and the servers."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.config import Decoding
from tutelage.errors import InputError
from tutelage.methods.token_matching import TokenMatching
from tutelage.models.shell import is_adapted
from tutelage.recipe import Recipe
from tutelage.rollouts.student_servers import StudentServers
from tutelage.training.writers import Asked, asked_of


def samples_elsewhere(recipe: Recipe) -> bool:
    """Whether servers write the student's text."""
    return recipe.sampler.backend == "vllm-http"


def check_sampling(recipe: Recipe) -> None:
    """Say before anything is loaded that servers cannot write what the method asks for.

    Raises:
        InputError: the student writes nothing, writes with the teacher, or in a way that servers do not know.
    """
    if not samples_elsewhere(recipe):
        return
    given = f"sampler.backend is vllm-http, but method '{recipe.method.name}' as set up here"
    asked = [one for one in asked_of(recipe) if one.writer in ("student", "mixed")]
    if not asked:
        raise InputError(f"{given} has the student write nothing: leave sampler out")
    if any(one.teacher_share for one in asked):
        raise InputError(
            f"{given} has student and teacher write together, token by token, which no server does: set "
            "method.teacher_share: 0, or leave sampler out"
        )
    problems = [_problem(one.decoding) for one in asked if one.decoding is not None]
    problem = next((problem for problem in problems if problem), None)
    if problem:
        raise InputError(f"{given} decodes with {problem}, which the servers are not asked for: leave it out")
    if recipe.sampler.max_staleness and not _can_weigh(recipe, asked):
        raise InputError(
            f"sampler.max_staleness is {recipe.sampler.max_staleness}, but method '{recipe.method.name}' as set up "
            "here cannot weigh the text of an older student: set it to 0, or use on-policy-kd, gkd, imitkd or "
            "minillm-single-step with reduction: token and text drawn at temperature 1 from all tokens"
        )


def _can_weigh(recipe: Recipe, asked: Sequence[Asked]) -> bool:
    """Whether the loss adds up over positions what depends on the tokens before them, on text of the student's law."""
    method = recipe.method
    drawn = all(one.decoding is not None and one.decoding.samples_the_model for one in asked)
    return isinstance(method, TokenMatching) and method.reduction == "token" and drawn


def _problem(decoding: Decoding) -> str | None:
    if decoding.strategy == "beam":
        return "beam search"
    if decoding.no_repeat_ngram_size:
        return "no_repeat_ngram_size"
    return "backend: generate" if decoding.backend == "generate" else None


def check_servable(recipe: Recipe, student: PreTrainedModel) -> None:
    """Say that the weights of a student cannot be handed over.

    Args:
        recipe: whose run.
        student: the student; a skeleton will do.

    Raises:
        InputError: it has an encoder, or an adapter.
    """
    if not samples_elsewhere(recipe):
        return
    adapted = is_adapted(student) or recipe.student.adapter is not None
    if adapted or student.config.is_encoder_decoder:
        raise InputError(
            f"sampler.backend is vllm-http, but the student has an {'adapter' if adapted else 'encoder'}: only whole "
            "decoder-only models are handed over; leave sampler out"
        )


def student_servers(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, report: Callable[[str], None]
) -> StudentServers | None:
    """Return the servers of a recipe that has some, after a look at them.

    Raises:
        InputError: a server cannot be reached, or is not what is needed.
    """
    if not samples_elsewhere(recipe):
        return None
    folder = Path(recipe.sampler.weights_folder or Path(recipe.output) / "weights")
    servers = StudentServers(recipe.sampler, folder, tokenizer, report)
    report(f"the student's text is written by '{recipe.sampler.model}' at {' and '.join(recipe.sampler.urls)}")
    return servers
