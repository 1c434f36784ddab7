"""A served model's mark for each response."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tutelage.errors import InputError
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
    try:
        import httpx
        import stamina
    except ImportError:
        raise InputError("method.reward of kind 'judge' needs: pip install 'tutelage[judge]'") from None

    key = os.environ.get(reward.key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(base_url=reward.url or "", headers=headers, timeout=120)

    def passing(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, httpx.TransportError)

    @stamina.retry(on=passing, attempts=5)
    def reply(question: str) -> str:
        response = client.post("chat/completions", json=_request(reward.model, question))
        response.raise_for_status()
        return response.json()["choices"][0]["message"]["content"]

    def mark(row: tuple[str, str, str]) -> float:
        try:
            return mark_in(reply(_question(*row)))
        except httpx.HTTPError as error:
            raise InputError(f"method.reward: the judge at {reward.url} does not answer ({error})") from None

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


def _question(prompt: str, response: str, reference: str) -> str:
    shown = REFERENCE.format(reference=reference) if reference else ""
    return QUESTION.format(prompt=prompt, response=response, reference=shown)


def _request(model: str | None, question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0}
