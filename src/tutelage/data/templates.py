"""Rows to ids: the prompt, the response, and which of its tokens are in the loss."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tutelage.data.chat import REFUSED, ChatTemplate, Rendered
from tutelage.data.coder import Coder, Response
from tutelage.data.problems import Problems, refuse
from tutelage.data.rows import Row
from tutelage.data.tokens import Ids
from tutelage.data.turns import Turns
from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STOP_INSIDE = "stop token inside the response"
NO_PROMPT = "prompt without tokens"


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

    Returns:
        The kept examples in the order of the rows, with the counts of the dropped ones.

    Raises:
        InputError: the template does not fit the rows or the tokenizer, or no row was kept.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer '{tokenizer.name_or_path}' has no end token; set its eos_token")
    coder = Coder.of(tokenizer, stop_ids, encoder_decoder)
    chat = _is_chat(rows, template)
    texts = _chat_texts(rows, coder) if chat else _plain_texts(rows, template, coder)
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    for row, text, prompt, response in zip(
        rows, texts, coder.prompts(texts, chat), coder.responses(texts), strict=True
    ):
        reason = _drop_reason(prompt, response, max_prompt_tokens, max_tokens)
        if reason or any(coder.stops_early(content) for content in text.written):
            dropped[reason or STOP_INSIDE] += 1
        else:
            kept.append(_example(len(kept), row, text, prompt, response))
    if not kept:
        raise InputError(_nothing_kept(dropped, len(rows)))
    return Examples(tuple(kept), dict(dropped), len(rows))


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


def _chat_texts(rows: Sequence[Row], coder: Coder) -> list[Rendered]:
    template = ChatTemplate(coder.tokenizer, coder.pattern)
    problems = Problems("")
    texts: list[Rendered] = []
    for row in rows:
        text = template.render(_turns(row))
        if isinstance(text, Rendered):
            texts.append(replace(text, reference=coder.up_to_stop(text.reference, keep_stop=False)))
            continue
        problems.add(row.where, text)
        if text.kind != REFUSED:
            break  # the template itself is at fault: one row says it all
    refuse([problems])
    return texts


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


def _drop_reason(prompt: Ids, response: Response, max_prompt_tokens: int, max_tokens: int) -> str | None:
    if not prompt:
        return NO_PROMPT
    if len(prompt) > max_prompt_tokens:
        return f"prompt longer than {max_prompt_tokens} tokens"
    if len(prompt) + len(response.ids) > max_tokens:
        return f"prompt and response longer than {max_tokens} tokens"
    return STOP_INSIDE if response.stop_inside else None


def _nothing_kept(dropped: Counter[str], total: int) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    long = any("longer" in reason for reason in dropped)
    advice = "; raise data.max_prompt_tokens or data.max_tokens, or shorten the rows" if long else ""
    return f"no trainable rows: 0 of {total} kept ({reasons or 'there are none'}){advice}"
