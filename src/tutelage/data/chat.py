"""Conversations to text: the prompt, and which parts of what follows the assistant wrote.

Every conversation is rendered once, whole. Where its assistant turns lie is read off the template's
`{% generation %}` marks, or else off renderings that stop before and after each turn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tutelage.data.problems import Complaint
from tutelage.data.turns import Turns
from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

REFUSED = "refused by the template"
MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Rendered:
    """The text of one row, in the pieces in which it is tokenised."""

    prompt: str
    """Everything that the student is given before it writes."""
    pieces: tuple[tuple[str, bool], ...]
    """What follows the prompt, and for each piece whether it is trained on; the last one is."""
    reference: str
    """What the student is expected to write, without stop tokens; empty for prompts alone."""
    written: tuple[str, ...]
    """Everything in the row that the student is to learn to write."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer with a chat template.
        stops: matches the text of any stop token; `None` where they have no text.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    tokenizer: "PreTrainedTokenizerBase"
    stops: re.Pattern[str] | None

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None:
            raise InputError(
                f"tokenizer '{self.tokenizer.name_or_path}' has no chat template; use a tokenizer that "
                "has one, or prompt/completion rows with data.template: plain (or a text with {prompt} in it)"
            )

    def render(self, turns: Turns) -> Rendered | Complaint:
        """Render one conversation.

        Args:
            turns: turns that end in a user or tool turn (a prompt) or in an assistant turn (an example).

        Returns:
            Its text, or why the template cannot be trained on with it.
        """
        from jinja2 import TemplateError

        try:
            return self._example(turns) if turns[-1]["role"] == "assistant" else self._prompt(turns)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            advice = "rename roles with data.roles, or drop the row"
            text = f"the chat template refuses the turns [{roles}]: {error}; {advice}"
            return Complaint(REFUSED, text)

    def _prompt(self, turns: Turns) -> Rendered:
        return Rendered(self._text(turns, True), (), "", ())

    def _example(self, turns: Turns) -> Rendered | Complaint:
        places = [k for k, turn in enumerate(turns) if turn["role"] == "assistant"]
        prompt = self._text(turns[: places[0]], True)
        marked = MARK.search(self.tokenizer.get_chat_template()) is not None
        whole, spans = self._marked(turns) if marked else self._by_prefixes(turns, places)
        if spans is None or not whole.startswith(prompt):
            return _rewrites()
        pieces = _pieces(
            whole,
            len(prompt),
            [self._with_stop(whole, max(start, len(prompt)), end) for start, end in spans if end > len(prompt)],
        )
        if not pieces:
            text = "the chat template marks no assistant turn with {% generation %}; mend or remove its marks"
            return Complaint("nothing marked", text)
        written = tuple(turns[k]["content"] for k in places)
        return Rendered(prompt, pieces, written[0], written)

    def _by_prefixes(self, turns: Turns, places: Sequence[int]) -> tuple[str, list[Span] | None]:
        """The whole text and its assistant turns; no turns where an earlier part reads differently later."""
        whole = self._text(turns, False)
        spans: list[Span] = []
        for place in places:
            before = self._text(turns[:place], True)
            until = whole if place == len(turns) - 1 else self._text(turns[: place + 1], False)
            if not (until.startswith(before) and whole.startswith(until)):
                return whole, None
            spans.append((len(before), len(until)))
        return whole, spans

    def _marked(self, turns: Turns) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        special: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        texts, spans = render_jinja_template(
            conversations=[[dict(turn) for turn in turns]],
            chat_template=self.tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
            **special,
        )
        return texts[0], [(start, end) for start, end in cast(list[list[Span]], spans)[0] if end > start]

    def _with_stop(self, text: str, start: int, end: int) -> Span:
        """The span of a turn up to its first stop token, which stands within it or right after it."""
        if self.stops is None:
            return start, end
        blank = len(text) - end - len(text[end:].lstrip())
        stop = self.stops.search(text, start, end) or self.stops.match(text, end + blank)
        return start, stop.end() if stop else end

    def _text(self, turns: Turns, generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=generation_prompt
            )
        )


def _pieces(text: str, start: int, spans: Sequence[Span]) -> tuple[tuple[str, bool], ...]:
    """Cut the text from `start` to the last span's end into trained and untrained pieces."""
    pieces: list[tuple[str, bool]] = []
    for begin, end in spans:
        if end > start:
            begin = max(begin, start)
            pieces += [(text[start:begin], False), (text[begin:end], True)]
            start = end
    return tuple(piece for piece in pieces if piece[0])


def _rewrites() -> Complaint:
    text = (
        "the chat template rewrites earlier turns once later ones follow, or writes a turn differently "
        "from its generation prompt: what is trained would not be what is generated; use prompt/completion "
        "rows, or a template with {% generation %} marks"
    )
    return Complaint("template rewrites turns", text)
