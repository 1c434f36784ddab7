"""Asking a served model, over an OpenAI-compatible endpoint."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import InputError

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a served model answered."""

    text: str
    prompt_tokens: int = 0
    """As the endpoint counts them; 0 where it does not."""
    completion_tokens: int = 0


def asker(url: str | None, model: str | None, *, key_variable: str, key: str) -> Callable[[Messages], Reply]:
    """Return the function that asks a served model at temperature 0; it may be called from several threads.

    Requests that fail (connection, 429, 5xx) are tried again, up to five times.

    Args:
        url: of the endpoint, such as `http://localhost:8000/v1`.
        model: the name under which it serves the model.
        key_variable: the environment variable with the API key, which is not sent where there is none.
        key: where the settings stand, for messages.

    Raises:
        InputError: the extra 'judge' is not installed; and, when asked, the endpoint refuses the request.
    """
    try:
        import httpx
        import stamina
    except ImportError:
        raise InputError(f"{key} asks a judge, which needs: pip install 'tutelage[judge]'") from None

    secret = os.environ.get(key_variable)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    client = httpx.Client(base_url=url or "", headers=headers, timeout=120)

    def passing(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, httpx.TransportError)

    @stamina.retry(on=passing, attempts=5)
    def answer(messages: Messages) -> httpx.Response:
        request = {"model": model, "messages": list(messages), "temperature": 0}
        return client.post("chat/completions", json=request).raise_for_status()

    def ask(messages: Messages) -> Reply:
        try:
            return _read(answer(messages).json())
        except httpx.HTTPError as error:
            raise InputError(f"{key}: the judge at {url} does not answer ({error})") from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise InputError(f"{key}: {url} answers otherwise than OpenAI's chat completions do; look at url") from None

    return ask


def _read(body: Any) -> Reply:
    usage = body.get("usage") or {}
    text = body["choices"][0]["message"]["content"] or ""
    return Reply(str(text), int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
