"""A student and its teacher, loaded to be looked at rather than trained."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tutelage.config import Model
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.models.teachers import LocalTeacher
from tutelage.models.vocabulary import shared_vocabulary


@dataclass(frozen=True)
class Pair:
    """Two models, or a student alone. Both are in evaluation mode."""

    student: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    """The student's."""
    teacher: LocalTeacher | None
    """On the student's device where its results are concerned."""
    vocabulary: int | None
    """Leading ids that both vocabularies share; `None` without a teacher."""


def load_pair(student: Model, teacher: Model | None, seed: int = 0) -> Pair:
    """Load a student, and a teacher to compare it with.

    Args:
        student: which model.
        teacher: which one; `None` for a student alone.
        seed: of what a model has without weights of its own.

    Raises:
        InputError: a model cannot be loaded, or the two have different tokenizers.
    """
    tokenizer = load_tokenizer(student, "student")
    network = load_model(student, "student", seed=seed)
    model = LanguageModel(network, stop_ids(network, tokenizer))
    network.eval()
    if teacher is None:
        return Pair(model, tokenizer, None, None)
    other = load_tokenizer(teacher, "teacher")
    large = load_model(teacher, "teacher", seed=seed)
    local = LocalTeacher(LanguageModel(large, stop_ids(large, other)), model.device)
    shared = shared_vocabulary(tokenizer, other, model.head.vocabulary, local.head.vocabulary)
    return Pair(model, tokenizer, local, shared.size)
