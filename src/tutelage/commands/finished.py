"""The finished student of a run, for the verbs that hand it on."""

from dataclasses import replace
from pathlib import Path

from tutelage.config import Model
from tutelage.errors import InputError
from tutelage.recipe import Recipe


def finished_model(name: str) -> Path:
    """Return the folder with a run's finished student, or a model's own folder.

    Args:
        name: folder of a run or of a model.

    Raises:
        InputError: there is none, or the run goes on.
    """
    folder = Path(name).expanduser()
    for place in (folder / "model", folder):
        if any((place / file).is_file() for file in ("config.json", "adapter_config.json")):
            return place
    if (folder / "config.yaml").is_file():
        raise InputError(f"{folder} has no model/ yet; give the command that began the run again, and it goes on")
    raise InputError(f"no run and no model at {folder}; expected a run's folder, or one with config.json")


def trained(folder: Path, recipe: Recipe) -> Model:
    """Return the model that a run left as a section of a recipe: with its device and dtype.

    Args:
        folder: of the run.
        recipe: the run's.

    Raises:
        InputError: the run goes on.
    """
    model = folder / "model"
    if not model.is_dir():
        raise InputError(f"{folder} has no model yet; finish the run, or name one of its checkpoints and --teacher")
    started_from = {"from_config": None, "from_teacher": None, "adapter": None}
    return replace(recipe.student, model=str(model), tokenizer=None, **started_from)
