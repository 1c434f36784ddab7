"""Every key a recipe can have, read off the dataclasses: for `--help`, and for naming the nearest known key."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Key:
    """One key of a recipe."""

    path: str
    """Dotted, as in overrides: `train.learning_rate`."""
    kind: str
    """What it takes, in words."""
    default: Any
    """Its default; `...` where it must be given."""
    text: str
    """Its documentation."""


@lru_cache
def recipe_keys(method: str) -> Mapping[str, Key]:
    """Return all keys of a recipe with the given method, by dotted path, in the order they are declared.

    >>> recipe_keys("gkd")["method.student_fraction"].default
    0.5
    """
    from tutelage.config import Evaluation
    from tutelage.methods import METHODS
    from tutelage.recipe import Recipe

    schema = TypeAdapter(Recipe).json_schema()
    of_method = TypeAdapter(METHODS[method]).json_schema()
    definitions = schema["$defs"] | of_method.get("$defs", {})
    properties = schema["properties"] | {"method": {k: v for k, v in of_method.items() if k != "$defs"}}
    walked = _walk("", {"properties": properties, "required": schema.get("required", [])}, definitions)
    # A section inside a section has the defaults that its owner gives it, not its own.
    given = {
        f"{owner}.{name}.{key}": value
        for owner, instance in (("evaluation", Evaluation()), ("method", METHODS[method]()))
        for name, section in vars(instance).items()
        if is_dataclass(section)
        for key, value in vars(section).items()
    }
    return {key.path: replace(key, default=given.get(key.path, key.default)) for key in walked}


def keys_of(kind: type) -> list[Key]:
    """Return all keys of a section or a file that is read into a dataclass, in the order they are declared."""
    schema = TypeAdapter(kind).json_schema()
    return list(_walk("", schema, schema.get("$defs", {})))


def describe_keys(method: str) -> str:
    """Return all keys with what they take, their defaults and their documentation, section by section."""
    lines: list[str] = []
    keys = sorted(recipe_keys(method).values(), key=lambda key: key.path.partition(".")[0])
    for key in keys:
        section = key.path.partition(".")[0]
        if "." in key.path and f"\n{section}" not in lines:
            lines.append(f"\n{section}")
        default = "" if key.default is ... else f", default {key.default}"
        lines.append(f"  --{key.path.replace('_', '-')}  ({key.kind}{default})")
        if key.text:
            lines.append(textwrap.fill(key.text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _walk(prefix: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Key]:
    for name, declared in schema["properties"].items():
        section = _section(declared, definitions)
        path = f"{prefix}{name}"
        if section is not None:
            yield from _walk(f"{path}.", section, definitions)
            continue
        default = ... if name in schema.get("required", []) else declared.get("default", declared.get("const"))
        yield Key(path, _kind(declared, definitions), default, " ".join(declared.get("description", "").split()))


def _section(declared: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The nested section that a key holds, if it holds one."""
    for candidate in (declared, *declared.get("anyOf", []), *declared.get("allOf", [])):
        resolved = _resolve(candidate, definitions)
        if "properties" in resolved:
            return resolved
    return None


def _resolve(declared: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = declared.get("$ref")
    return definitions[reference.rpartition("/")[2]] if reference else declared


def _kind(declared: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    declared = _resolve(declared, definitions)
    if "anyOf" in declared:
        return " or ".join(dict.fromkeys(_kind(option, definitions) for option in declared["anyOf"]))
    if "enum" in declared:
        return "|".join(map(str, declared["enum"]))
    if "const" in declared:
        return str(declared["const"])
    if declared.get("type") == "array":
        items = declared.get("items") or (declared.get("prefixItems") or [{}])[0]
        return f"list of {_kind(items, definitions)}"
    names = {"integer": "whole number", "string": "text", "boolean": "true|false", "object": "mapping"}
    kind = declared.get("type", "value")
    bounds = [
        f"{sign} {declared[bound]:g}"
        for bound, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", "≥"),
            ("exclusiveMaximum", "<"),
            ("maximum", "≤"),
        )
        if bound in declared
    ]
    return " ".join([str(names.get(kind, kind)), *bounds])
