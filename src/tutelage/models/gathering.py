"""Tensors that may be cut over the processes of a run, written by all of these: file by file, each by one process.

A process has no more of them whole than the file that it writes, and one tensor besides. Which tensors share a file
follows from their names and sizes alone, so the files are the same whatever the number of processes.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from tutelage.models import adapters
from tutelage.models.sharding import is_sharded, whole_tensors
from tutelage.models.shell import is_adapted
from tutelage.sealing import Seal, sync
from tutelage.world import world

FILE_BYTES = 4 * 2**30
"""About how large a file may be. A layer is never cut in two."""
_LAYER = re.compile(r".*?\.\d+\.")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """A file of tensors."""

    name: str
    seal: Seal
    sizes: Mapping[str, int]
    """Bytes of each tensor."""


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], stored: Callable[[Tensors], Tensors] = dict
) -> list[Written]:
    """Write tensors as safetensors: to `<stem>.safetensors`, or to `<stem>-00001-of-00003.safetensors` and so on.

    Every process of the run calls it with the same names. A tensor that is cut is collected; of one that is not, each
    process has all.

    Args:
        folder: there is one, and all processes see it.
        stem: of the files' names.
        tensors: what to write, by name.
        stored: turns whole tensors into what is written. It gets all of a layer at once.

    Returns:
        The files, in all processes.

    Raises:
        OSError: a file could not be written, in all processes; a `RuntimeError` with the words of safetensors likewise.
    """
    everyone, plan, found = world(), _plan(tensors), []
    for start in range(0, len(plan), everyone.size):
        path = folder / _name(stem, start + everyone.rank, len(plan))
        shares = [
            whole_tensors({name: tensors[name] for name in names}, rank)
            for rank, names in enumerate(plan[start : start + everyone.size])
        ]
        mine = shares[everyone.rank] if everyone.rank < len(shares) else None
        files = everyone.gather(everyone.agreed(partial(_write, path, mine, stored)))
        found += [file for file in files if file is not None]
    return found


def write_model(model: PreTrainedModel, folder: Path) -> list[Written]:
    """Write a model as a Hugging Face folder, which any number of processes can load, cut or whole.

    One that is whole is written by the first process, and so is the adapter of a cut one; one that is cut by all.

    Returns:
        The files that are on the disk, with their seals, in all processes: those of a model that is cut.
    """
    everyone = world()
    if is_adapted(model) or not is_sharded(model):
        adapter = adapters.whole_adapter(model) if is_sharded(model) else None
        everyone.main_does(lambda: model.save_pretrained(folder, state_dict=adapter))
        return []
    everyone.main_does(lambda: model.save_pretrained(folder, state_dict={}))  # all but the weights
    files = write_tensors(folder, "model", _own_weights(model), lambda part: revert_weight_conversion(model, part))
    if len(files) > 1:
        everyone.main_does(lambda: _write_index(folder, files))
    return files


def _own_weights(model: PreTrainedModel) -> Tensors:
    """What a model's files hold: tied weights once, under their first name."""
    left_out, first = set(model._keys_to_ignore_on_save or ()), dict[int, str]()
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in left_out}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name].detach() for name in first.values()}


def _write_index(folder: Path, files: list[Written]) -> None:
    places = {name: file.name for file in files for name in file.sizes}
    size = sum(sum(file.sizes.values()) for file in files)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each file. What belongs to one layer stays together."""
    layers: dict[str, list[str]] = {}
    for name in tensors:
        layer = _LAYER.match(name)
        layers.setdefault(layer.group() if layer else name, []).append(name)
    files: list[list[str]] = []
    filled = FILE_BYTES
    for names in layers.values():
        size = sum(tensors[name].nbytes for name in names)
        if filled + size > FILE_BYTES:
            files.append([])
            filled = 0
        files[-1] += names
        filled += size
    return files or [[]]


def _name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number + 1:05}-of-{count:05}.safetensors"


def _write(path: Path, tensors: Tensors | None, stored: Callable[[Tensors], Tensors]) -> Written | None:
    if tensors is None:
        return None
    tensors = {name: tensor.contiguous() for name, tensor in stored(tensors).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    sync(path)
    return Written(path.name, Seal.of(path), {name: tensor.nbytes for name, tensor in tensors.items()})
