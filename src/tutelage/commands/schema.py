"""`tutelage schema`: what a recipe may say, for editors that check and complete YAML."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tutelage.methods import METHODS
from tutelage.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of recipes: keys, types, ranges and their documentation.

    What hangs together across keys (a method that needs a teacher) is not in it; `tutelage check` looks at that.

    >>> recipe_schema()["required"]
    ['student', 'data', 'train', 'output']
    """
    schema = TypeAdapter(Recipe).json_schema()
    for method in METHODS.values():  # told apart by their names, so that an editor completes the keys of one of them
        schema["$defs"][method.__name__]["required"] = ["name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Recipe of tutelage"}


def write_schema(out: str | None) -> None:
    """Print the schema, or write it to a file."""
    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    Path(out).write_text(text, encoding="utf-8")
    print(f"wrote {out}")
