"""Secrets, taken out of everything that is written down or shown: dumps, logs, reports, messages."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"
_NAME = re.compile(r"(?i)(?:^|.*[_-])(?:token|key|secret|password)")
_OF_TOKENIZERS = re.compile(r"(?i)(?:bos|eos|pad|unk|sep|cls|mask|stop|image|begin|end)[_-]token")
_USER = re.compile(r"(?<=://)[^/\s'\"@]+@")
_GIVEN = re.compile(r"(?i)((?:\b|[?&;_-])(?:api[_-]?key|token|secret|password)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&;,)\]}]+")
_BEARER = re.compile(r"(?i)\b(bearer )[^\s\"',)\]}]+")
_KNOWN = re.compile(r"\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}")
_SHORTEST = 8  # values of variables that are shorter are words


def is_secret(name: str) -> bool:
    """Whether a key or variable of this name holds a secret.

    >>> [is_secret(name) for name in ("HF_TOKEN", "api_key", "password", "eos_token", "micro_batch_tokens")]
    [True, True, True, False, False]
    """
    return bool(_NAME.fullmatch(name)) and not _OF_TOKENIZERS.fullmatch(name)


def redacted(value: Any) -> Any:
    """Return a copy of nested mappings and lists without the secrets in them.

    >>> redacted({"url": "https://me:pass@host/v1", "api_key": "abc", "seed": 3})
    {'url': 'https://[redacted]@host/v1', 'api_key': '[redacted]', 'seed': 3}
    """
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and is_secret(key) and isinstance(inner, str) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """Return a text without the secrets in it: users in URLs, keys given as such, and the environment's own.

    >>> redacted_text("GET https://me:pass@host/v1?token=abc failed")
    'GET https://[redacted]@host/v1?token=[redacted] failed'
    """
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _GIVEN.sub(rf"\g<1>{HIDDEN}", text)
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, text)
