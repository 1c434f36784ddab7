"""A served model's mark for each response."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tutelage.rewards.endpoint import Messages, asker
from tutelage.rewards.reward import Reward, Scorer

INSTRUCTION = "You are a helpful and precise assistant for checking the quality of an answer."
QUESTION = """[Instruction]
{prompt}

{reference}[The Start of the Assistant's Answer]
{response}
[The End of the Assistant's Answer]

Rate the helpfulness, relevance, accuracy and level of detail of the answer on a scale of 1 to 10, where a higher \
score indicates better overall performance. Output a single line with the score alone."""
REFERENCE = "[Reference Answer]\n{reference}\n\n"


def scorer(reward: Reward) -> Scorer:
    """Return the function that asks an OpenAI-compatible endpoint for a mark from 1 to 10, divided by 10.

    Requests that fail (connection, 429, 5xx) are tried again, up to five times. A reply without a mark gives NaN.
    The key comes from the environment variable `key_variable`, and is not sent where there is none.

    Reference: the wording follows the judge of Vicuna (Chiang et al. 2023), which compares two answers.

    Raises:
        InputError: the extra 'judge' is not installed, or the endpoint refuses the request.
    """
    ask = asker(reward.url, reward.model, key_variable=reward.key_variable, key="method.reward")

    def mark(row: tuple[str, str, str]) -> float:
        return mark_in(ask(_messages(*row)).text)

    def score(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
        with ThreadPoolExecutor(reward.parallel) as pool:
            return list(pool.map(mark, zip(prompts, responses, references, strict=True)))

    return score


def mark_in(text: str) -> float:
    """Return the first number in a judge's reply, divided by 10 and held in [0, 1]; NaN where there is none.

    >>> mark_in("Score: 7 out of 10"), mark_in("I cannot say")
    (0.7, nan)
    """
    found = re.search(r"\d+(?:\.\d+)?", text)
    return min(float(found.group()) / 10, 1.0) if found else float("nan")


def _messages(prompt: str, response: str, reference: str) -> Messages:
    shown = REFERENCE.format(reference=reference) if reference else ""
    question = QUESTION.format(prompt=prompt, response=response, reference=shown)
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
