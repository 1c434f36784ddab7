"""What a run depends on, written into every checkpoint, and compared when the run is to go on."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from tutelage.config import Teacher
from tutelage.errors import InputError
from tutelage.models.identity import tokenizer_identity, weights_identity
from tutelage.models.served_teacher import ServedTeacher, same_teacher
from tutelage.recipe import Recipe, dump_recipe, parse_yaml, recipe_of
from tutelage.training.setup import Setup, needs_teacher

CHANGEABLE = ("train.steps", "train.epochs", "train.save_every", "train.log_every", "train.keep_checkpoints",
              "train.keep_best", "train.trackers", "train.micro_batch_tokens", "train.shard",
              "train.shard_within", "train.on_nonfinite", "train.nonfinite_budget", "train.alarms", "evaluation",
              "teacher_cache.folder", "output", "method.*_decoding.batch_size", "method.*_decoding.cuda_graphs",
              "teacher.url", "teacher.protocol", "teacher.concurrency", "teacher.timeout", "teacher.patience",
              "teacher.key_variable", "sampler.url", "sampler.weights_folder", "sampler.tolerance",
              "sampler.concurrency", "sampler.timeout", "sampler.patience", "sampler.key_variable")  # fmt: skip
"""Keys that may differ when a run is resumed: they do not change what is learnt at a step."""
FIXED = ("method.name", "student.model", "student.from_config", "student.from_teacher")
"""Keys that cannot be allowed to differ: the checkpoint would not fit."""
PARTS = {
    "data": "the training rows in {data} are not those that {folder} began with; put the rows back",
    "tokenizer": "the tokenizer is not the one that {folder} began with: the same strings have other ids; put it back",
    "chat_template": "the tokenizer's chat template is not the one that {folder} began with; put it back",
    "teacher": "the teacher {teacher} has other weights than the one that {folder} began with; put them back",
}
PACKAGES = ("tutelage", "torch", "transformers", "tokenizers", "numpy")


def identity_of(setup: Setup) -> dict[str, Any]:
    """Return what a run depends on, for JSON: its recipe, and short names for rows, tokenizer and teacher."""
    recipe, tokenizer = setup.recipe, setup.tokenizer
    teacher = recipe.teacher if needs_teacher(recipe) else None
    return {
        "recipe": mapping_of(recipe),
        "data": setup.texts.fingerprint,
        "tokenizer": tokenizer_identity(tokenizer),
        "chat_template": sha256(repr(tokenizer.chat_template).encode()).hexdigest()[:16],
        "teacher": _teacher_identity(setup, teacher),
        "packages": {name: version(name) for name in PACKAGES},
    }


def changed_keys(recipe: Recipe, stored: Mapping[str, Any], allowed: Collection[str] = ()) -> list[str]:
    """Say which keys differ from a stored recipe, beyond those that may: `train.learning_rate: 0.1 → 0.2`.

    Args:
        recipe: as it is now.
        stored: the mapping that it was.
        allowed: keys and sections that may differ besides `CHANGEABLE`.

    Raises:
        InputError: a key that can never differ was allowed to.
    """
    for key in FIXED:
        if key in allowed:
            raise InputError(
                f"--allow-change {key}: a checkpoint fits the method and the student that it was made with; begin a "
                "new run from its model with student.model, and name another output"
            )
    before, after = _flat(_completed(stored)), _flat(mapping_of(recipe))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    kept = [key for key in keys if not _covered(key, CHANGEABLE) and (key in FIXED or not _covered(key, allowed))]
    return [f"{key}: {before.get(key)} → {after.get(key)}" for key in kept]


def check_parts(
    now: Mapping[str, Any], before: Mapping[str, Any], setup: Setup, allowed: Collection[str] = ()
) -> list[str]:
    """Compare what a run depends on besides its recipe.

    Args:
        now: of `identity_of`.
        before: the same, out of a checkpoint.
        setup: the run, for messages.
        allowed: parts that may differ: data, tokenizer, chat_template, teacher.

    Returns:
        What is worth a note: other versions of the packages.

    Raises:
        InputError: a part differs.
    """
    teacher = setup.recipe.teacher.model if setup.recipe.teacher else None
    names = {"folder": setup.folder, "data": setup.recipe.data.train, "teacher": teacher}
    for part, message in PARTS.items():
        known = None not in (now[part], before[part])  # a teacher that only evaluations need may come and go
        if known and not same_teacher(now[part], before[part]) and part not in allowed:
            way_out = f", name another output, or go on all the same with --allow-change {part}"
            raise InputError(message.format(**names) + way_out)
    changed = [f"{n} {v} → {now['packages'][n]}" for n, v in before["packages"].items() if now["packages"].get(n) != v]
    return [f"the checkpoint was made with other versions ({', '.join(changed)})"] if changed else []


def _teacher_identity(setup: Setup, teacher: Teacher | None) -> Any:
    """A short name for the weights of a teacher, or what a served one is known by."""
    if teacher is None or teacher.url is None:
        return None if teacher is None else weights_identity(teacher, "teacher")
    return asdict(setup.teacher.fingerprint) if isinstance(setup.teacher, ServedTeacher) else None


def mapping_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the mapping that its YAML file would give."""
    return parse_yaml(dump_recipe(recipe), "recipe")


def _completed(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with the defaults of keys that it is older than."""
    try:
        return mapping_of(recipe_of(stored))
    except InputError:  # it has keys that are no more
        return stored


def _covered(key: str, names: Collection[str]) -> bool:
    return any(fnmatchcase(key, name) or key.startswith(f"{name}.") for name in names)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
