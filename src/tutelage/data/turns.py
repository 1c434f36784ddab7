"""Conversations: what a list of turns must look like."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tutelage.data.problems import Complaint, kind_of

Turns = tuple[dict[str, str], ...]

ROLES = ("system", "user", "assistant", "tool")
LIKELY_ROLES: dict[str, str] = dict.fromkeys(("gpt", "bot", "model", "ai", "chatbot"), "assistant")
LIKELY_ROLES.update(developer="system", function="tool", ipython="tool")
MAY_BE_EMPTY = ("system", "tool")
SURROGATE = re.compile("[\ud800-\udfff]")
UNPAIRED = "invalid Unicode (lone surrogate); mend it, or set data.surrogates: replace"


def read_turns(value: object, label: str, roles: Mapping[str, str]) -> Turns | Complaint:
    """Check one conversation and bring it into one form.

    Args:
        value: a list of turns, each `{"role": …, "content": …}` (or ShareGPT's `from` and `value`).
        label: the name of its column, for the messages.
        roles: maps roles of the data to those of the template.

    Returns:
        The turns, or what is wrong with the first bad one. Further keys that hold text (such as
        `reasoning_content`) are kept for the chat template.

    >>> read_turns([{"from": "human", "value": "Hi"}], "messages", {"human": "user"})
    ({'role': 'user', 'content': 'Hi'},)
    """
    if not isinstance(value, list):
        return Complaint(f"'{label}' is {kind_of(value)}", f"'{label}' is {kind_of(value)}; expected a list of turns")
    turns: list[dict[str, str]] = []
    for number, item in enumerate(value):
        turn = _turn(item, f"{label}[{number}]", roles)
        if isinstance(turn, Complaint):
            return turn
        turns.append(turn)
    return _order_complaint(turns, label) or tuple(turns)


def out_of_turn(turns: Turns) -> bool:
    """Tell whether the user or the assistant speaks twice in a row.

    >>> out_of_turn(({"role": "user", "content": "Hi"}, {"role": "user", "content": "You there?"}))
    True
    """
    return any(one["role"] == two["role"] and one["role"] in ("user", "assistant") for one, two in pairwise(turns))


def _turn(item: Any, label: str, roles: Mapping[str, str]) -> dict[str, str] | Complaint:
    if not isinstance(item, dict):
        return Complaint("not a turn", f"{label} is {kind_of(item)}; expected an object with role and content")
    role_key, content_key = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    role, content = item.get(role_key), item.get(content_key)
    if not isinstance(role, str):
        return Complaint("no role", f"{label}.{role_key} is {kind_of(role)}; found keys [{', '.join(item)}]")
    mapped = roles.get(role, role)
    if mapped not in ROLES:
        return _unknown_role(mapped, label)
    if item.get("tool_calls"):
        return Complaint("tool calls", f"{label}.tool_calls cannot be trained on; write the call as text in content")
    complaint = _content_complaint(content, mapped, f"{label}.{content_key}")
    if complaint is not None:
        return complaint
    extra = {key: text for key, text in item.items() if isinstance(text, str) and key not in (role_key, content_key)}
    if any(SURROGATE.search(text) for text in extra.values()):
        return Complaint("invalid Unicode", f"{label}: {UNPAIRED}")
    return {"role": mapped, "content": str(content), **extra}


def _unknown_role(role: str, label: str) -> Complaint:
    likely = LIKELY_ROLES.get(role.lower(), "user")
    expected = f"not accepted ({', '.join(ROLES)})"
    return Complaint("unknown role", f"{label}.role '{role}' {expected}; map with data.roles: {{{role}: {likely}}}")


def _content_complaint(content: object, role: str, label: str) -> Complaint | None:
    if content is None:
        return Complaint("null", f"{label} is null")
    if not isinstance(content, str):
        return Complaint("not text", f"{label} is {kind_of(content)}; expected a string")
    if not content.strip() and role not in MAY_BE_EMPTY:
        return Complaint("empty", f"{label} is empty; drop the conversation or this turn")
    if SURROGATE.search(content):
        return Complaint("invalid Unicode", f"{label}: {UNPAIRED}")
    return None


def _order_complaint(turns: list[dict[str, str]], label: str) -> Complaint | None:
    if not turns:
        return Complaint("no turns", f"'{label}' has no turns")
    if turns[0]["role"] == "assistant":
        text = f"'{label}' starts with an assistant turn; a user or system turn must come before it"
        return Complaint("order of turns", text)
    if turns[-1]["role"] == "system":
        text = f"'{label}' ends in a system turn; end in user or tool (a prompt), or in assistant (an example)"
        return Complaint("order of turns", text)
    return None
