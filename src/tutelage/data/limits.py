"""How long rows may be, and how many of them may be left out. Nothing is ever truncated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.errors import InputError

STOP_INSIDE = "stop token inside the response"
NO_PROMPT = "prompt without tokens"


@dataclass(frozen=True)
class Limits:
    """The longest rows that are trained on."""

    max_prompt_tokens: int
    max_tokens: int
    positions: int | None
    """What the models can look at; `None` is without end."""
    new_tokens: int
    """Room for text that a model writes behind the prompt."""
    encoder_decoder: bool
    """Prompt and response have their positions each, instead of sharing them."""

    def reason(self, prompt: Sequence[int], response: Sequence[int]) -> str | None:
        """Say why a row is too long (or has no prompt), `None` where it fits.

        >>> Limits(9, 20, 10, 4, False).reason([1] * 7, [1])
        "prompt and 4 new tokens longer than the model's 10 positions"
        """
        if not prompt:
            return NO_PROMPT
        if len(prompt) > self.max_prompt_tokens:
            return f"prompt longer than {self.max_prompt_tokens} tokens"
        if len(prompt) + len(response) > self.max_tokens:
            return f"prompt and response longer than {self.max_tokens} tokens"
        if self.positions is None:
            return None
        behind = 0 if self.encoder_decoder else len(prompt)
        if max(len(prompt), behind + len(response)) > self.positions:
            return f"longer than the model's {self.positions} positions"
        if self.new_tokens and behind + self.new_tokens > self.positions:
            return f"prompt and {self.new_tokens} new tokens longer than the model's {self.positions} positions"
        return None

    def check_dropped(self, dropped: Mapping[str, int], total: int, most: float) -> None:
        """Refuse rows of which none, or too few, are left.

        Args:
            dropped: how many rows were left out, for each reason.
            total: all rows, dropped ones included.
            most: largest share of them that may be dropped.

        Raises:
            InputError: no row was kept, or more were dropped than `most` allows.

        >>> Limits(9, 20, None, 0, False).check_dropped({"null": 1}, 8, 0.2)
        """
        count = sum(dropped.values())
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items()) or "there are none"
        advice = self._advice(dropped)
        if count == total:
            raise InputError(f"no trainable rows: 0 of {total:,} kept ({reasons}){advice}")
        if count / total > most:
            raise InputError(
                f"{count:,} of {total:,} rows would be dropped ({reasons}), more than data.max_dropped = {most:g} "
                f"allows{advice}; or set data.max_dropped to {_rounded_up(count / total)}"
            )

    def _advice(self, dropped: Mapping[str, int]) -> str:
        advice = []
        if any(reason.endswith("tokens") and "longer" in reason for reason in dropped):
            advice.append("raise data.max_prompt_tokens or data.max_tokens, or shorten the rows")
        if any(reason.endswith("positions") for reason in dropped):
            lower = "lower max_new_tokens, " if self.new_tokens else ""
            advice.append(f"{lower}shorten the rows, or use models that look further")
        return "".join(f"; {piece}" for piece in advice)


def _rounded_up(share: float) -> float:
    """A share with two decimals that is not smaller.

    >>> _rounded_up(0.1201), _rounded_up(0.5)
    (0.13, 0.5)
    """
    return -(-round(share * 100, 6) // 1) / 100
