"""From a recipe to a teacher with another tokenizer than the student's."""

from collections.abc import Iterable
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data import Example, Examples, Row, encode
from tutelage.data.alignment import TokenBytes, shared_pieces
from tutelage.errors import InputError
from tutelage.models.bridge import Bridge, BridgedTeacher
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import stop_ids
from tutelage.models.pairing import positions
from tutelage.recipe import Recipe
from tutelage.training.served import is_served
from tutelage.training.texts import Read, Texts

_NO_LIMIT = 1 << 40


def check_bridge(recipe: Recipe) -> None:
    """Refuse what goes by ids of one vocabulary, with a method whose models have one each.

    Raises:
        InputError: the teacher is to be cached, or a metric compares with it id by id.
    """
    if not recipe.method.plan.bridges_tokenizers:
        return
    name = recipe.method.name
    if is_served(recipe):
        raise InputError(f"{name} needs the weights of its teacher: leave teacher.url out")
    if recipe.teacher_cache.kind is not None:
        raise InputError(f"{name} has the teacher read the text in its own tokens: leave teacher_cache out")
    for metric in ("agreement", "distances"):
        if metric in recipe.evaluation.metrics:
            raise InputError(
                f"evaluation.metrics has {metric}, which compares token by token of one vocabulary; leave it out with "
                f"{name} (loss, rouge_l and exact_answer do not ask the teacher)"
            )


def bridged_teacher(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    student: LanguageModel,
    student_tokenizer: PreTrainedTokenizerBase,
    rows: Read,
    texts: Texts,
) -> BridgedTeacher:
    """Return a teacher that reads the recipe's prompts, and whatever text follows them, with its own tokenizer.

    Args:
        recipe: the recipe.
        model: the teacher.
        tokenizer: its own.
        student: the student.
        student_tokenizer: its own.
        rows: the rows as they were read.
        texts: the same in the student's ids.

    Raises:
        InputError: a tokenizer cannot be aligned, a conversation has several turns in its response, or a row does not
            fit the teacher.
    """
    whole = LanguageModel(model, stop_ids(model, tokenizer))
    ours = TokenBytes.of(student_tokenizer, starts_text=student.is_encoder_decoder)
    theirs = TokenBytes.of(tokenizer, starts_text=whole.is_encoder_decoder)
    reader = _TeachersRows(recipe, whole, tokenizer)
    examples = [*texts.train, *(texts.validation or ())]
    several = next((example for example in examples if not all(example.mask)), None)
    if several is not None:
        raise InputError(
            f"{several.where} has several turns in its response; {recipe.method.name} takes one response a row: split "
            "the conversation"
        )
    sources = [*_rows_of(texts.train, rows.train), *_rows_of(texts.validation or (), rows.validation or ())]
    ids = [example.prompt for example in examples]
    prompts = dict(zip(ids, reader.prompts(sources), strict=True))
    end = reader.end(sources[0])
    usual = next((example.response[-1] for example in examples if example.response), student_tokenizer.eos_token_id)
    own_end = int(usual)  # pyright: ignore[reportArgumentType]  (typed as str | list too)
    strings = {
        one: other
        for one, other in shared_pieces(ours, theirs).items()
        if other != end and one < student.head.vocabulary and other < whole.head.vocabulary
    }
    stops = frozenset(student.stop_ids) | {own_end}
    bridge = Bridge(ours, theirs, prompts, stops, end, {**strings, own_end: end})
    return BridgedTeacher(whole, bridge, student.device)


def bridge_line(teacher: BridgedTeacher) -> str:
    """Say what the two vocabularies have in common."""
    return f"two tokenizers, {len(teacher.bridge.shared):,} tokens are the same strings; text is aligned by its bytes"


def _rows_of(examples: Iterable[Example], rows: Iterable[Row]) -> list[Row]:
    """The row that each example was made of."""
    written = {row.where: row for row in rows}
    return [written[example.where] for example in examples]


class _TeachersRows:
    """The rows of a recipe as the teacher's tokenizer and chat template have them."""

    def __init__(self, recipe: Recipe, teacher: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._template, self._teacher, self._tokenizer = recipe.data.template, teacher, tokenizer
        self._positions = positions(teacher.network)

    def prompts(self, rows: Iterable[Row]) -> list[tuple[int, ...]]:
        """The ids of each row's prompt."""
        return [example.prompt for example in self._encoded([_asked(row) for row in rows])]

    def end(self, row: Row) -> int:
        """The token that a response ends in."""
        return self._encoded([_answered(_asked(row))])[0].response[-1]

    def _encoded(self, rows: list[Row]) -> Examples:
        return encode(
            rows,
            self._tokenizer,
            template=self._template,
            max_prompt_tokens=_NO_LIMIT,
            max_tokens=_NO_LIMIT,
            stop_ids=frozenset(self._teacher.stop_ids),
            encoder_decoder=self._teacher.is_encoder_decoder,
            positions=self._positions,
            max_dropped=0.0,
        )


def _asked(row: Row) -> Row:
    """A row without its response."""
    if row.messages is None:
        return replace(row, completion=None)
    turns = [turn["role"] for turn in row.messages]
    first = turns.index("assistant") if "assistant" in turns else len(turns)
    return replace(row, messages=row.messages[:first])


def _answered(row: Row) -> Row:
    """A prompt with some response."""
    if row.messages is None:
        return replace(row, completion="yes")
    return replace(row, messages=(*row.messages, {"role": "assistant", "content": "yes"}))
