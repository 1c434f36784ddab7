"""Text to ids, in batches: what a tokenizer adds by itself, and text that continues other text."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[Ids]:
    """Encode texts without special tokens, never truncated.

    Args:
        tokenizer: any tokenizer of transformers.
        texts: the texts, each of them on its own.

    Returns:
        The ids of each text.
    """
    if not texts:
        return []
    return list(_call(tokenizer, list(texts), add_special_tokens=False)["input_ids"])


def added_around(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[Ids, Ids]:
    """Find the ids that a tokenizer puts before and after a text by itself.

    Args:
        tokenizer: any tokenizer of transformers.
        text: a text that gives at least one id.

    Returns:
        The ids before (such as BOS) and after (such as T5's end of sequence).
    """
    bare: Ids = encode_texts(tokenizer, [text])[0]
    whole: Ids = list(_call(tokenizer, text, add_special_tokens=True)["input_ids"])
    starts = range(len(whole) - len(bare) + 1)
    start = next((k for k in starts if whole[k : k + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def encode_continuations(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], previous: Sequence[str]
) -> list[Ids]:
    """Encode texts that go on where other texts end, so that both together read as one text.

    SentencePiece tokenizers as Llama-2's or Mistral's put a space before every text that they are given,
    which would separate a response from its prompt. There the text is encoded behind a newline, or behind
    the special token that the previous text ends with, and the ids of those are taken off again.

    Args:
        tokenizer: any tokenizer of transformers.
        texts: the texts to encode.
        previous: the text before each of them.

    Returns:
        The ids of each text, without special tokens.
    """
    if not adds_space(tokenizer):
        return encode_texts(tokenizer, texts)
    ending = literal_pattern(tokenizer, tokenizer.all_special_ids, r"\Z")
    matches = [ending.search(text) if ending else None for text in previous]
    contexts = [match.group() if match else "\n" for match in matches]
    known = list(dict.fromkeys(contexts))
    heads = dict(zip(known, encode_texts(tokenizer, known), strict=True))
    joined = encode_texts(tokenizer, [context + text for context, text in zip(contexts, texts, strict=True)])
    return [ids[len(heads[context]) :] for context, ids in zip(contexts, joined, strict=True)]


def literal_pattern(
    tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int], suffix: str = ""
) -> re.Pattern[str] | None:
    """Compile a pattern for the texts that give exactly one of `ids`, as `<|im_end|>` does.

    Args:
        tokenizer: any tokenizer of transformers.
        ids: the ids to look for; those that are not written as a text of their own are left out.
        suffix: regular expression that must follow.

    Returns:
        The pattern, `None` where none of the ids has such a text.
    """
    wanted = sorted(ids)
    texts = [str(tokenizer.decode([i])) for i in wanted]
    encoded = encode_texts(tokenizer, texts)
    literal = [re.escape(text) for text, i, got in zip(texts, wanted, encoded, strict=True) if got == [i]]
    return re.compile(f"(?:{'|'.join(sorted(literal, key=len, reverse=True))}){suffix}") if literal else None


def adds_space(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer puts a space before every text that it is given."""
    alone, newline, after_newline = encode_texts(tokenizer, ["x", "\n", "\nx"])
    return after_newline[: len(newline)] == newline and after_newline[len(newline) :] != alone


def _call(tokenizer: "PreTrainedTokenizerBase", text: str | list[str], **options: Any) -> Any:
    return tokenizer(text, truncation=False, verbose=False, return_attention_mask=False, **options)
