"""A run whose teacher is served: what has to fit, and the teacher."""

from collections.abc import Callable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.errors import InputError
from tutelage.models.head import output_head
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.vocabulary import SharedVocabulary, shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.training.fixed_text import writers_of


def is_served(recipe: Recipe) -> bool:
    """Whether the teacher of a recipe is behind a server."""
    return recipe.teacher is not None and recipe.teacher.url is not None


def check_served(recipe: Recipe) -> None:
    """Say before anything is loaded that a served teacher cannot do what the method asks for.

    Raises:
        InputError: the method has it write text.
    """
    if is_served(recipe) and writers_of(recipe).teacher is not None:
        raise InputError(
            f"the teacher is served (teacher.url), but method '{recipe.method.name}' as set up here has it write text, "
            "which a served teacher is not asked for; learn from the data's own responses (offline: data), or leave "
            "teacher.url out"
        )


def served_teacher(recipe: Recipe, report: Callable[[str], None]) -> ServedTeacher | None:
    """Return the teacher of a recipe that needs one and has it served, after a look at its servers.

    Raises:
        InputError: a server cannot be reached, or is not what is needed.
    """
    if recipe.teacher is None or not is_served(recipe) or not recipe.method.needs_teacher:
        return None
    teacher = ServedTeacher(recipe.teacher, report)
    places = " and ".join(recipe.teacher.urls)
    report(f"teacher: '{recipe.teacher.model}' at {places}; its {teacher.top_k} most probable tokens are compared")
    return teacher


def served_positions(teacher: ServedTeacher | None) -> int | None:
    """The positions of a served teacher, `None` where they have no end; it writes one token behind every prompt."""
    longest = None if teacher is None else teacher.fingerprint.max_length
    return None if longest is None else longest - 1


def shared_with(
    teacher: ServedTeacher, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> SharedVocabulary:
    """Find the ids on which a student and a served teacher are compared.

    Args:
        teacher: of its head no more is known than the ids of its tokenizer.
        student: the student; a skeleton will do.
        tokenizer: the student's.

    Raises:
        InputError: the tokenizers differ, or the student reads its prompts with an encoder.
    """
    if student.config.is_encoder_decoder:
        raise InputError(
            "the teacher is served (teacher.url), where prompt and response are one text, but the student reads its "
            "prompts with an encoder; choose a decoder-only student, or leave teacher.url out"
        )
    return shared_vocabulary(tokenizer, teacher.tokenizer, output_head(student).vocabulary, teacher.vocabulary)
