"""Every message that the code can give a user, read off the source; and the entries of the troubleshooting page."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ANY = "…"
"""Stands for whatever differs from message to message."""
SOURCE = Path("src/tutelage")
PAGE = Path("docs/troubleshooting.md")

FEWEST = 7
"""Fixed letters that a message has at least; what has fewer is put together from others."""
ERRORS = {"InputError", "DivergedError", "CheckpointError", "Stopped", "TutelageError", "ValueError", "ConnectionError",
          "Refused"}  # fmt: skip
TELLING = {"report", "note", "leave", "error", "print", "warn"}
"""Functions and methods that show their first argument to the user."""
PROGRESS = ("demo/", "training/progress.py")
"""Where what is said needs no explanation."""
COLLECTED = {"problems", "notes"}
"""Lists of sentences for the user."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Message:
    """A sentence in the code, with `…` for what it is filled with."""

    where: str
    text: str


def messages() -> list[Message]:
    """All messages of the package, in the order of files and lines."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        if str(file.relative_to(SOURCE)).startswith(PROGRESS):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += list(_Reader(file, tree).messages())
    return found


def entries() -> list[str]:
    """The messages that the page explains: the first cells of its tables of messages, apart where ` · ` parts them."""
    found: list[str] = []
    explaining = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            explaining = False
        elif line.startswith("| message |"):
            explaining = True
        elif explaining and not line.startswith("|---"):
            found += [entry.strip() for entry in line.split("|")[1].split(" · ")]
    return found


def explains(entry: str, message: str) -> bool:
    """Whether the fixed words of an entry come in a message, in their order.

    >>> explains("'…' is missing", "'…' is missing (… has it)"), explains("missing … is", "is missing")
    (True, False)
    """
    pieces = [re.escape(piece.strip()) for piece in entry.split(ANY) if piece.strip()]
    return re.search(".*".join(pieces), message) is not None


def fixed_words(text: str) -> str:
    """A message without what it is filled with."""
    return text.replace(ANY, "").strip(" ;:,.()'[]{}—–-")


def _says_something(text: str) -> bool:
    words = fixed_words(text)
    return len(words) >= FEWEST and " " in text and words != "tutelage"  # which all that end a command begin with


class _Reader:
    """Finds the messages of one file."""

    def __init__(self, file: Path, tree: ast.Module) -> None:
        self._file, self._tree = file, tree

    def messages(self) -> Iterator[Message]:
        """The messages, each once."""
        seen: set[str] = set()
        for scope in ast.walk(self._tree):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(scope):
                    for text in self._texts(node, scope):
                        if _says_something(text) and text not in seen:
                            seen.add(text)
                            yield Message(f"{self._file}:{node.lineno}", text)  # pyright: ignore

    def _texts(self, node: ast.AST, scope: Function) -> Iterator[str]:
        if (
            isinstance(node, ast.Return)
            and re.search("(note|notes|complaint|fault|message|gated)$", scope.name)
            and node.value
        ):
            yield from self._values(node.value, scope)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in COLLECTED:
            for value in ast.walk(node.value):
                if isinstance(value, ast.Constant | ast.JoinedStr):
                    yield from self._values(value, scope)
        if isinstance(node, ast.Call):
            for argument in self._shown(node):
                yield from self._values(argument, scope)

    def _shown(self, call: ast.Call) -> list[ast.expr]:
        """The arguments of a call that reach the user."""
        function, first = call.func, call.args[:1]
        if isinstance(function, ast.Name):
            if function.id in ERRORS | TELLING:
                return first
            if function.id == "Complaint":
                return call.args[1:2]
        if isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if function.attr == "append" and owner in COLLECTED:
                return first
            if function.attr in TELLING and owner not in ("re", "parser", "log"):
                return first
        return []

    def _values(self, node: ast.expr, scope: Function) -> list[str]:
        """What an expression may be as a text."""
        match node:
            case ast.Constant(value=str(text)):
                return [" ".join(text.split())]
            case ast.JoinedStr(values=parts):
                return ["".join(self._part(part, scope) for part in parts)]
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                pairs = product(self._values(left, scope), self._values(right, scope))
                return ["".join(pair) for pair in pairs]
            case ast.IfExp(body=body, orelse=other):
                return self._values(body, scope) + self._values(other, scope)
            case ast.Name(id=name):
                return self._assigned(name, scope) or [ANY]
            case ast.Call(func=ast.Attribute(attr="format", value=value)):
                return [re.sub(r"\{[^}]*\}", ANY, text) for text in self._values(value, scope)]
            case _:
                return [ANY]

    def _part(self, part: ast.expr, scope: Function) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        inner = part.value if isinstance(part, ast.FormattedValue) else part
        if isinstance(inner, ast.Name):
            known = self._constant(inner.id)
            return known or ANY
        return ANY

    def _constant(self, name: str) -> str | None:
        """A text that the file gives a name in capitals."""
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                return str(node.value.value) if isinstance(node.value, ast.Constant) else None
        return None

    def _assigned(self, name: str, scope: Function) -> list[str]:
        """The texts that a function gives a name."""
        values = [
            node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
        ]
        return [text for value in values if not isinstance(value, ast.Name) for text in self._values(value, scope)]
