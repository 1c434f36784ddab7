"""The rows of a recipe as ids: the one way from its `data` section to examples, for every verb."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from tutelage.data import Example, Examples, Rows, encode, fingerprint, plain_rows, read_rows, repeat_notes
from tutelage.errors import InputError
from tutelage.evaluation.evaluate import GENERATED
from tutelage.recipe import Recipe
from tutelage.training.writers import asked_of


@dataclass(frozen=True)
class Texts:
    """The rows of a run as ids."""

    train: Examples
    validation: Examples | None
    fingerprint: str
    """Of the training rows as read."""
    plain: tuple[tuple[int, ...], ...] = ()
    """Rows of `data.text`."""
    notes: tuple[str, ...] = ()
    """What is not wrong, and yet worth knowing, a line each."""


@dataclass(frozen=True)
class Reader:
    """What tokenises the rows of a recipe, and how far its models can look."""

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    """All ids that end a response."""
    encoder_decoder: bool
    positions: int | None = None
    """Positions that every model of the run has; `None` where none of them has an end."""


@dataclass(frozen=True)
class Read:
    """The rows of a recipe as they were read: what is wrong with them is known before any model is loaded."""

    train: Rows
    validation: Rows | None


def read(recipe: Recipe) -> Read:
    """Read the recipe's training and validation rows.

    Raises:
        InputError: rows are wrong.
    """
    return Read(rows_of(recipe, "train"), None if recipe.data.validation is None else rows_of(recipe, "validation"))


def read_texts(recipe: Recipe, reader: Reader, rows: Read | None = None) -> Texts:
    """Turn the rows of a recipe into ids.

    Args:
        recipe: whose rows.
        reader: what makes ids of them.
        rows: the rows, where they have been read.

    Raises:
        InputError: rows are wrong, too many of them do not fit, or validation rows have no completions.
    """
    data, rows = recipe.data, rows or read(recipe)
    train = encoded(recipe, rows.train, reader, new_tokens(recipe, training=True))
    notes = [*rows.train.notes, *token_notes(train.kept, reader)]
    validation = None
    if rows.validation is not None:
        validation = encoded(recipe, rows.validation, reader, new_tokens(recipe, training=False))
        if not all(example.response for example in validation):
            raise InputError(
                f"{data.validation} has prompts only, but every metric needs a reference; add completions to the "
                "validation rows, or leave data.validation out"
            )
        notes += rows.validation.notes
    notes += repeat_notes(rows.train, rows.validation or ())
    plain = () if data.text is None else plain_rows(data.text, reader.tokenizer, data.text_tokens)
    return Texts(train, validation, fingerprint(rows.train), plain, tuple(notes))


def rows_of(recipe: Recipe, which: Literal["train", "validation"]) -> Rows:
    """Read the training or the validation rows of a recipe.

    Raises:
        InputError: rows are wrong, or the recipe has no validation rows.
    """
    data = recipe.data
    source, limit = (data.train, data.limit) if which == "train" else (data.validation, data.validation_limit)
    if source is None:
        raise InputError("the recipe has no validation rows: add data.validation")
    return read_rows(
        source,
        columns=data.columns,
        roles=data.roles,
        limit=limit,
        skip_bad=data.on_bad_row == "skip",
        replace_surrogates=data.surrogates == "replace",
    )


def encoded(recipe: Recipe, rows: Rows, reader: Reader, new_tokens: int) -> Examples:
    """Turn rows into ids as the recipe says, with room for new tokens behind each prompt."""
    data = recipe.data
    return encode(
        rows,
        reader.tokenizer,
        template=data.template,
        max_prompt_tokens=data.max_prompt_tokens,
        max_tokens=data.max_tokens,
        stop_ids=frozenset(reader.stops),
        encoder_decoder=reader.encoder_decoder,
        positions=reader.positions,
        new_tokens=new_tokens,
        max_dropped=data.max_dropped,
        skip_bad=data.on_bad_row == "skip",
    )


def new_tokens(recipe: Recipe, *, training: bool) -> int:
    """The longest text that a model may write behind a training (or a validation) prompt; 0 where none does."""
    if training:
        decodings = [asked.decoding for asked in asked_of(recipe) if asked.decoding is not None]
    else:
        measured = any(metric in recipe.evaluation.metrics for metric in (*GENERATED, "distances"))
        decodings = [recipe.evaluation.decoding] if measured else []
    return max((decoding.max_new_tokens for decoding in decodings), default=0)


def describe_counts(name: str, examples: Examples) -> str:
    """Say how many rows were kept and dropped, and why."""
    dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in examples.dropped.items())
    return f"{len(examples):,} of {examples.total:,} {name} rows{dropped}"


def token_notes(examples: Sequence[Example], reader: Reader) -> list[str]:
    """Look at the ids of examples: a begin token written twice, and turns that end in what is no stop token."""
    return [note for note in (_begin_note(examples, reader), _end_note(examples, reader)) if note]


def _begin_note(examples: Sequence[Example], reader: Reader) -> str | None:
    begin = reader.tokenizer.bos_token_id
    if begin is None:
        return None
    twice = [e for e in examples if e.prompt[:2] == (begin, begin) or e.response[:1] == (begin,)]
    if not twice:
        return None
    return (
        f"{len(twice):,} of {len(examples):,} rows have {reader.tokenizer.bos_token} twice, or at the start of their "
        f"response (first: {twice[0].where}); take it out of the text, it is added where it belongs"
    )


def _end_note(examples: Sequence[Example], reader: Reader) -> str | None:
    """Where a chat template ends turns in a special token, generation has to stop there too."""
    special = set(reader.tokenizer.all_special_ids) - set(reader.stops)
    for example in examples[:3]:
        texts = [(token, str(reader.tokenizer.decode([token]))) for token in example.response[:-1]]
        last = next(((token, text) for token, text in reversed(texts) if text.strip()), None)
        if last and last[0] in special:
            return (
                f"responses end in {last[1]!r} (first: {example.where}), which is not among the tokens that stop "
                "generation; add it to eos_token_id in generation_config.json"
            )
    return None
