"""Reading YAML that may come from anybody: plain values only, of bounded size."""

import re
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import InputError

LONGEST = 1_000_000
"""Characters of a recipe."""
MOST_VALUES = 100_000
"""Values of a recipe, each counted as often as it is repeated by an alias."""
LONGEST_NUMBER = 100
"""Characters of a number."""


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-5` is a number, a date is a text, and a key that appears twice is a mistake."""


_KNOWN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in _KNOWN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KNOWN
}
_Loader.add_implicit_resolver(_TAG + "float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _mapping_without_twins(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _problem("a key is a list or a mapping", key_node)
        if key_node.value in seen:
            raise _problem(f"key '{key_node.value}' appears twice", key_node)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > LONGEST_NUMBER:
        raise _problem(f"a number of {len(node.value)} digits", node)
    build = loader.construct_yaml_float if node.tag.endswith("float") else loader.construct_yaml_int
    return build(node)


_Loader.add_constructor(_TAG + "map", _mapping_without_twins)
_Loader.add_constructor(_TAG + "int", _number)
_Loader.add_constructor(_TAG + "float", _number)


def parse_yaml(text: str, source: str, *, mapping: bool = True) -> Any:
    """Read YAML into mappings with text keys, lists, texts, numbers, booleans and nulls.

    Args:
        text: the YAML. Tags that would make other objects are refused; so are texts longer than `LONGEST`, and
            aliases that would repeat themselves into more than `MOST_VALUES` values, or endlessly.
        source: what it is called in messages.
        mapping: whether keys and values are expected at the top.

    Raises:
        InputError: it is no YAML, too large, or no mapping where one is expected.

    >>> parse_yaml("rate: 1e-5", "recipe.yaml")
    {'rate': 1e-05}
    """
    if len(text) > LONGEST:
        raise InputError(f"{source}: more than {LONGEST:,} characters, which no recipe has")
    try:
        loader = _Loader(text.removeprefix("\ufeff"))
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise InputError(f"{source}: aliases repeat it into more than {MOST_VALUES:,} values; write it out shorter")
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unknown reason"
        raise InputError(f"{source}{where}: not valid YAML: {reason}") from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: nested too deeply, or inside itself") from None
    except (ValueError, KeyError) as error:  # a text under a tag such as !!int or !!bool
        raise InputError(f"{source}: not valid YAML: a value is not what its tag says ({error})") from None
    if mapping and not isinstance(value, dict):
        raise InputError(f"{source}: expected keys and values such as 'method:' and 'student:'")
    return value


def read_yaml(path: Path) -> str:
    """Read the text of a YAML file, no more of it than may be parsed.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(LONGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, those behind aliases counted every time; endless inside itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)
