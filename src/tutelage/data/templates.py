"""Rows to ids: the prompt, the response, and which of its tokens are in the loss."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tutelage.data.chat import REFUSED, ChatTemplate, Rendered
from tutelage.data.coder import Coder, Response
from tutelage.data.limits import STOP_INSIDE, Limits
from tutelage.data.problems import Problems, refuse
from tutelage.data.row import Row, Rows
from tutelage.data.tokens import Ids
from tutelage.data.turns import Turns
from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One row as ids. Prompt and response are tokenised apart, as generation sees them."""

    item: int
    """Position among the kept examples."""
    where: str
    """File and line of the row."""
    prompt: tuple[int, ...]
    """Ids before the response, at least one."""
    response: tuple[int, ...]
    """Ids that follow, the last one a stop token; empty for prompts alone."""
    mask: tuple[bool, ...]
    """For each id of the response whether it is in the loss: the assistant's text and its stop tokens."""
    prompt_text: str
    """The prompt as text, rendered."""
    reference: str
    """What the student is expected to write after the prompt (of a conversation, the first assistant
    turn), without stop tokens; empty for prompts alone."""


@dataclass(frozen=True)
class Examples:
    """The examples that were kept, and how many rows were dropped for which reason."""

    kept: tuple[Example, ...]
    dropped: dict[str, int]
    total: int

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, item: int) -> Example:
        return self.kept[item]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.kept)


def encode(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str = "auto",
    max_prompt_tokens: int,
    max_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    encoder_decoder: bool = False,
    positions: int | None = None,
    new_tokens: int = 0,
    max_dropped: float = 1.0,
    skip_bad: bool = False,
) -> Examples:
    """Turn rows into ids, and drop and count those that are too long; nothing is ever truncated.

    Plain prompts get what the tokenizer adds by itself (for decoder-only models nothing behind them),
    completions end in exactly one stop token. Conversations are rendered by the chat template; every
    assistant turn is in the loss with its stop token, and nothing else is.

    Args:
        rows: rows of `read_rows`.
        tokenizer: the tokenizer of the student.
        template: `chat`, `plain`, `auto` (`chat` for conversations, `plain` otherwise), or a text with
            `{prompt}` in it that wraps plain prompts.
        max_prompt_tokens: rows with longer prompts are dropped.
        max_tokens: rows with a longer prompt and response together are dropped.
        stop_ids: all tokens that end generation; the tokenizer's end token always is one of them.
        encoder_decoder: keep the end token that the tokenizer puts behind the encoder's input.
        positions: what the models can look at; rows that go beyond are dropped. `None` is without end.
        new_tokens: room for the text that a model writes, which has to fit into `positions` too.
        max_dropped: largest share of the rows that may be dropped, those that `read_rows` skipped included.
        skip_bad: drop conversations that the chat template refuses, instead of stopping.

    Returns:
        The kept examples in the order of the rows, with the counts of the dropped ones.

    Raises:
        InputError: the template does not fit the rows or the tokenizer, no row was kept, or too many dropped.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer '{tokenizer.name_or_path}' has no end token; set its eos_token")
    coder = Coder.of(tokenizer, stop_ids, encoder_decoder)
    limits = Limits(max_prompt_tokens, max_tokens, positions, new_tokens, encoder_decoder)
    dropped = Counter(rows.skipped if isinstance(rows, Rows) else ())
    total = len(rows) + dropped.total()
    chat = _is_chat(rows, template)
    if chat:
        rows, texts = _chat_texts(rows, coder, dropped, skip_bad)
    else:
        texts = _plain_texts(rows, template, coder)
    kept: list[Example] = []
    for row, text, prompt, response in zip(
        rows, texts, coder.prompts(texts, chat), coder.responses(texts), strict=True
    ):
        stops_early = response.stop_inside or any(coder.stops_early(content) for content in text.written)
        reason = limits.reason(prompt, response.ids) or (STOP_INSIDE if stops_early else None)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(_example(len(kept), row, text, prompt, response))
    limits.check_dropped(dropped, total, max_dropped)
    return Examples(tuple(kept), dict(dropped), total)


def _is_chat(rows: Sequence[Row], template: str) -> bool:
    has_turns = bool(rows) and rows[0].messages is not None
    if template not in ("auto", "chat", "plain") and "{prompt}" not in template:
        raise InputError(f"data.template '{template}': expected auto, chat, plain, or a text with {{prompt}} in it")
    if has_turns and template not in ("auto", "chat"):
        given = "plain" if template == "plain" else "a text with {prompt}"
        raise InputError(
            f"{rows[0].where} holds a conversation, but data.template is {given}; use chat, or prompt/completion rows"
        )
    return has_turns or template == "chat"


def _plain_texts(rows: Sequence[Row], template: str, coder: Coder) -> list[Rendered]:
    frame = template if "{prompt}" in template else "{prompt}"
    texts: list[Rendered] = []
    for row in rows:
        prompt = frame.replace("{prompt}", row.prompt or "")
        if row.completion is None:
            texts.append(Rendered(prompt, (), "", ()))
            continue
        piece = coder.up_to_stop(row.completion, keep_stop=True)
        reference = coder.up_to_stop(row.completion, keep_stop=False)
        texts.append(Rendered(prompt, ((piece, True),), reference, (row.completion,)))
    return texts


def _chat_texts(
    rows: Sequence[Row], coder: Coder, dropped: Counter[str], skip_bad: bool
) -> tuple[list[Row], list[Rendered]]:
    """The rows that the chat template takes, and their texts."""
    template = ChatTemplate(coder.tokenizer, coder.pattern)
    problems = Problems("")
    taken: list[Row] = []
    texts: list[Rendered] = []
    for row in rows:
        text = template.render(_turns(row))
        if isinstance(text, Rendered):
            taken.append(row)
            texts.append(replace(text, reference=coder.up_to_stop(text.reference, keep_stop=False)))
            continue
        if text.kind != REFUSED:
            problems.lose(row.where, text)
            break  # the template itself is at fault: one row says it all
        problems.add(row.where, text)
    refuse([problems], skip_rows=skip_bad)
    dropped.update(problems.kinds)
    return taken, texts


def _turns(row: Row) -> Turns:
    if row.messages is not None:
        return row.messages
    user = {"role": "user", "content": row.prompt or ""}
    if row.completion is None:
        return (user,)
    return (user, {"role": "assistant", "content": row.completion})


def _example(item: int, row: Row, text: Rendered, prompt: Ids, response: Response) -> Example:
    return Example(
        item=item,
        where=row.where,
        prompt=tuple(prompt),
        response=tuple(response.ids),
        mask=tuple(response.mask),
        prompt_text=text.prompt,
        reference=text.reference,
    )
