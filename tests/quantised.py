"""Models wide enough to be quantised, and what they take in memory; tests of them skip where a library is missing."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from torch import nn

from tutelage import config
from tutelage.models import loading, quantising

KINDS = ("int8", "nf4")
SILENT = {"report": lambda text: None}


def _kind(name: str) -> Any:
    library = quantising.LIBRARIES[name]
    here = find_spec(library) is not None and find_spec("accelerate") is not None
    reason = f"{name} is computed by {library} (pip install 'tutelage[quantised]')"
    return pytest.param(name, marks=pytest.mark.skipif(not here, reason=reason))


each_kind = pytest.mark.parametrize("kind", [_kind(name) for name in KINDS])

SIZES = {"hidden_size": 64, "intermediate_size": 128}
SIZES_OF_T5 = {"d_model": 64, "d_ff": 128, "d_kv": 32}


def write_model(folder: Path, seed: int = 2, family: str = "llama", **changes: Any) -> Path:
    """A model as wide as the blocks of four-bit weights are long."""
    sizes = SIZES_OF_T5 if family == "t5" else SIZES
    return tiny.write_model(folder, seed, family, **{**sizes, **changes})


def recipe_for(folder: Path, method: str, kind: str, family: str = "llama", **sections: Any) -> dict[str, Any]:
    """The tiny recipe with a quantised teacher."""
    if not (folder / f"{family}-teacher").exists():
        write_model(folder / f"{family}-teacher", 2, family)
    sections["teacher"] = {"quantize": kind, **sections.get("teacher", {})}
    return tiny.mapping(folder, method, family, **sections)


def spec(folder: Path, kind: str = "none", **options: Any) -> config.Teacher:
    return config.Teacher(model=str(folder), device="cpu", quantize=kind, **options)  # pyright: ignore


def load(folder: Path, kind: str = "none", **options: Any):
    return loading.load_model(spec(folder, kind, **options), "teacher", seed=0)


def save_quantised(folder: Path, kind: str, to: Path) -> Path:
    """The model and its tokenizer as a folder whose weights are stored quantised."""
    write_model(to)
    load(folder, kind).save_pretrained(to)
    return to


def stored_bytes(model: nn.Module) -> int:
    """What lies in memory for a model's weights: each storage once, with the scales that belong to them."""
    tensors = [part for weight in model.parameters() for part in quantising.parts_of(weight)]
    states = [weight.quant_state for weight in model.parameters() if type(weight).__name__ == "Params4bit"]
    tensors += [part for state in states for part in (state.absmax, state.code)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
