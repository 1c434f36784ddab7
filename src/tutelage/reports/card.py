"""The model card of an exported student: where it comes from and what it can do, ready for a hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tutelage.data import Examples
from tutelage.models.shell import is_adapted
from tutelage.recipe import dump_recipe
from tutelage.redaction import redacted_text
from tutelage.reports.render import grid
from tutelage.reports.run_record import parameters
from tutelage.reports.wording import METHODS, interval, size, unit, value
from tutelage.safe_yaml import parse_yaml

if TYPE_CHECKING:
    from tutelage.training.setup import Setup

FILE = "README.md"
_HOUSEKEEPING = ("save_every", "log_every", "keep_checkpoints", "keep_best", "trackers", "micro_batch_tokens",
                 "on_nonfinite", "nonfinite_budget", "alarms")  # fmt: skip
_TO_FILL_IN = """\
## Limitations

*To fill in before this model is published:*

- What it is meant for, and what it is not meant for.
- Whether the licences of teacher, student and data allow what is intended.
- Where it fails, and whom that may harm. A student repeats its teacher's mistakes and adds its own.
"""


def model_card(setup: "Setup", evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The card as Markdown with the fields that hubs read. Neither paths of this machine nor secrets are in it.

    Args:
        setup: the run with the trained student.
        evaluations: step and metrics of each evaluation.
    """
    recipe = parse_yaml(dump_recipe(setup.recipe), "recipe")
    parts = [
        _front_matter(setup),
        f"# {Path(setup.folder).resolve().name}\n",
        _summary(setup),
        "## Models\n",
        *grid(("", "model", "parameters"), list(_models(setup))),
        "\n## Data\n",
        *grid(("", "source", "rows read", "kept", "dropped"), list(_data(setup))),
        f"\nThe prompts are rendered by the template `{_shown(setup.recipe.data.template)}`.\n",
        "## Method\n",
        *grid(("key", "value"), [[f"`{key}`", f"`{found}`"] for key, found in _flat(recipe)]),
        "\n## Metrics\n",
        *_metrics(evaluations),
        _how_to_load(setup),
        _TO_FILL_IN,
    ]
    return redacted_text("\n".join(parts))


def public_name(name: str) -> str:
    """What others may know a model or a file by: a hub id as it is, of a path its last part.

    >>> public_name("HuggingFaceTB/SmolLM2-135M"), public_name("/home/me/data/train.jsonl"), public_name("/a/sft/model")
    ('HuggingFaceTB/SmolLM2-135M', 'train.jsonl', 'sft')
    """
    if "://" in name:
        return "a server"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", name) and not Path(name).exists():
        return name
    path = Path(name)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _front_matter(setup: "Setup") -> str:
    spec = setup.recipe.student
    base = public_name(spec.model) if spec.model else None
    fields: dict[str, Any] = {"base_model": base} if base and "/" in base else {}
    fields |= {
        "library_name": "transformers" if setup.student.model is setup.student.network else "peft",
        "pipeline_tag": "text2text-generation" if setup.student.is_encoder_decoder else "text-generation",
        "tags": ["knowledge-distillation", "tutelage", setup.recipe.method.name],
    }
    return f"---\nlicense: unknown  # fill in\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _summary(setup: "Setup") -> str:
    name = setup.recipe.method.name
    teacher = "" if setup.teacher is None or setup.recipe.teacher is None else (
        f" by `{public_name(str(setup.recipe.teacher.model))}`"
    )  # fmt: skip
    return (
        f"A student of {size(parameters(setup.student.model))} parameters, taught{teacher} for {setup.steps:,} steps "
        f"({METHODS.get(name, name)}, Tutelage {version('tutelage')}).\n"
    )


def _models(setup: "Setup") -> Iterator[list[str]]:
    spec = setup.recipe.student
    if spec.model is not None:
        start = f"begins as {public_name(spec.model)}"
    elif spec.from_teacher is not None:
        start = f"layers {', '.join(map(str, spec.from_teacher.layers))} of the teacher"
    else:
        start = f"fresh weights ({setup.student.network.config.model_type})"
    yield ["student", start, f"{parameters(setup.student.model):,}"]
    if setup.recipe.teacher is not None and setup.teacher is not None:
        writer = setup.teacher.model
        count = "" if writer is None else f"{parameters(writer.model):,}"
        yield ["teacher", public_name(str(setup.recipe.teacher.model)), count]


def _data(setup: "Setup") -> Iterator[list[str]]:
    data = setup.recipe.data
    yield ["training", public_name(data.train), *_counts(setup.texts.train)]
    if setup.texts.validation is not None:
        yield ["validation", public_name(str(data.validation)), *_counts(setup.texts.validation)]
    if data.text is not None:
        yield ["plain text", public_name(data.text), "", f"{len(setup.texts.plain):,}", ""]


def _counts(examples: Examples) -> list[str]:
    dropped = "; ".join(f"{count:,} {reason}" for reason, count in examples.dropped.items())
    return [f"{examples.total:,}", f"{len(examples):,}", dropped or "0"]


def _flat(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The method's and the optimiser's keys that have a value, without those that change nothing of what is learnt."""
    pending = [(name, recipe[name]) for name in ("train", "method")]
    while pending:
        key, found = pending.pop()
        if isinstance(found, Mapping):
            pending += [(f"{key}.{name}", inner) for name, inner in reversed([*found.items()])]
        elif found is not None and key.removeprefix("train.") not in _HOUSEKEEPING:
            yield key, str(_shown(found))


def _shown(found: Any) -> Any:
    """A value without the paths of this machine."""
    if isinstance(found, list):
        return [_shown(inner) for inner in found]
    return public_name(found) if isinstance(found, str) and re.search(r"^\S*[/\\]\S*$", found) else found


def _metrics(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not evaluations:
        yield "Nothing was measured.\n"
        return
    first, last = evaluations[0], evaluations[-1]
    rows = [
        [
            f"{name} ({unit(name)})" if unit(name) else name,
            *(_measured(name, e) for e in (first, last)),
            f"{found['n']:,}",
        ]
        for name, found in last["metrics"].items()
    ]
    yield from grid(("metric", "before", "after", "rows"), rows)
    yield "\nOn the validation rows; in brackets: 95 % intervals over the rows.\n"


def _measured(name: str, evaluation: Mapping[str, Any]) -> str:
    found = evaluation["metrics"].get(name)
    if found is None:
        return "–"
    reach = interval(name, found)
    return value(name, float(found["value"])) + (f" ({reach})" if reach else "")


def _how_to_load(setup: "Setup") -> str:
    adapter = is_adapted(setup.student.model) and not setup.recipe.train.merge_adapter
    prefix = "AutoPeftModel" if adapter else "AutoModel"
    kind = f"{prefix}ForSeq2SeqLM" if setup.student.is_encoder_decoder else f"{prefix}ForCausalLM"
    imports, needs = f"from transformers import AutoTokenizer, {kind}", ""
    if adapter:
        imports = f"from peft import {kind}\nfrom transformers import AutoTokenizer"
        needs = "An adapter: its base model is loaded with it.\n\n"
    return f"""\
## How to load it

{needs}```python
{imports}

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = {kind}.from_pretrained("path/to/this/folder")
```
"""
