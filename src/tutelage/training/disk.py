"""Room on the disk: whether a run's checkpoints will fit, and what an error says when they did not."""

import errno
import re
import shutil
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from tutelage.errors import InputError
from tutelage.models import adapters
from tutelage.models.skeleton import load_skeleton
from tutelage.models.sources import locate
from tutelage.recipe import Recipe

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no room: of the system, or of a library that hands on its text only."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    said = re.search(r"os error (\d+)", str(error))
    return said is not None and int(said.group(1)) in _FULL


def bytes_of(folder: Path) -> int:
    """The size of everything in a folder; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def model_bytes(model: nn.Module) -> int:
    """The size of a model's weights as they are written."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def checkpoint_bytes(model: nn.Module) -> int:
    """The size of a checkpoint: the weights, and AdamW's two moments of those that are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return model_bytes(model) + sum(2 * p.numel() * p.element_size() for p in trained)


def no_space(folder: Path, need: int) -> str:
    """Say how much room was needed and how much there is.

    >>> no_space(Path("/"), 1_200_000_000).startswith("No space left on /: need 1.2 GB, have ")
    True
    """
    return f"No space left on {folder}: need {readable(need)}, have {readable(_free(folder))}"


def check_room(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a run whose checkpoints will not fit beside each other, before any weights are read.

    An adapter's are small, and of a model with code of its own nothing is known without running that.

    Raises:
        InputError: they need more than there is.
    """
    spec = recipe.student
    if spec.trust_remote_code or spec.adapter is not None:
        return
    if spec.model and adapters.is_adapter(locate(spec.model, "student", spec.revision)):
        return
    teacher = load_skeleton(recipe.teacher, "teacher") if spec.from_teacher and recipe.teacher else None
    require_room(recipe, load_skeleton(spec, "student", tokenizer=tokenizer, teacher=teacher))


def require_room(recipe: Recipe, student: nn.Module) -> None:
    """Refuse a run whose checkpoints will not fit beside each other.

    Args:
        recipe: how often the run saves, how many checkpoints it keeps, and where. What is there already counts as
            room.
        student: the model, or its skeleton on the meta device.

    Raises:
        InputError: they need more than there is.
    """
    folder, train = Path(recipe.output), recipe.train
    size, model = checkpoint_bytes(student), model_bytes(student)
    kept = (train.keep_checkpoints if train.save_every else 1) + (train.keep_best is not None)
    need = (kept + 1) * size + model
    have = _free(folder) + bytes_of(folder / "checkpoints") + bytes_of(folder / "model")
    if need > have:
        raise InputError(
            f"the run needs {kept + 1} x {readable(size)} for keep={kept} (+1 staging) and {readable(model)} for the "
            f"model, {readable(have)} free on {_existing(folder)}; free some space, lower train.keep_checkpoints, or "
            "name another output"
        )


def readable(size: float) -> str:
    """A number of bytes in decimal units.

    >>> readable(14_200_000_000), readable(180_375), readable(12)
    ('14.2 GB', '180.4 KB', '12 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(part for part in (folder.absolute(), *folder.absolute().parents) if part.is_dir())
