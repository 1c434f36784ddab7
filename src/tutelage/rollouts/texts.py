"""From ids back to text."""

from typing import TYPE_CHECKING

from tutelage.rollouts.rollout import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def response_texts(rollout: Rollout, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the responses as text, without special tokens and surrounding white space."""
    return [str(tokenizer.decode(list(response), skip_special_tokens=True)).strip() for response in rollout.responses]
