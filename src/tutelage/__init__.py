"""Tutelage teaches a small language model what a large one knows.

>>> import tutelage
>>> tutelage.divergences.named("reverse_kl").name
'reverse_kl'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage import divergences, estimators, methods
    from tutelage.losses import Head, linear_divergence, map_vocabulary
    from tutelage.models.language_model import LanguageModel
    from tutelage.models.teachers import LocalTeacher
    from tutelage.recipe import Recipe, load_recipe, recipe_of
    from tutelage.rollouts.rollout import Rollout
    from tutelage.training.run import Run, train

_WHERE = {
    "divergences": None,
    "estimators": None,
    "methods": None,
    "Head": "losses",
    "linear_divergence": "losses",
    "map_vocabulary": "losses",
    "LanguageModel": "models.language_model",
    "LocalTeacher": "models.teachers",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "recipe_of": "recipe",
    "Rollout": "rollouts.rollout",
    "Run": "training.run",
    "train": "training.run",
}
"""Where each public name lives (`None`: it is a module); found when first used, so that importing is quick."""

__all__ = [
    "Head",
    "LanguageModel",
    "LocalTeacher",
    "Recipe",
    "Rollout",
    "Run",
    "divergences",
    "estimators",
    "linear_divergence",
    "load_recipe",
    "map_vocabulary",
    "methods",
    "recipe_of",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    module = _WHERE[name]
    if module is None:
        return import_module(f"tutelage.{name}")
    return getattr(import_module(f"tutelage.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
