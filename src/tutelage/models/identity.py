"""Which model it is that a recipe names: told from its files, without loading them."""

import hashlib
from functools import lru_cache
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase

from tutelage import config
from tutelage.models import adapters
from tutelage.models.sources import Source, locate

_WEIGHTS = ("*.safetensors", "*.gguf")


def weights_identity(spec: config.Model, role: str) -> str | None:
    """Return a short name for the weights and sizes of a stored model, the same wherever they lie.

    A model of the hub is known by its commit, a folder by the content of its configuration and weights, an adapter
    by its own and its base's. A model that is quantised while it is read is another one than the same with all bits.

    Args:
        spec: the model's section of a recipe; `spec.model` is given.
        role: whose model it is, for messages.

    Returns:
        16 hexadecimal digits; `None` for a folder that holds no weights (a configuration and a tokenizer, say).

    Raises:
        InputError: there is no such model.
    """
    assert spec.model is not None
    source = locate(spec.model, role, spec.revision)
    parts = [_content(source)]
    if adapters.is_adapter(source):
        parts.append(_content(adapters.base_of(source)))
    if isinstance(spec, config.Teacher) and spec.quantize != "none":
        parts.append(spec.quantize)
    if None in parts:
        return None
    return _short("".join(map(str, parts)).encode())


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short name for the map from strings to ids."""
    return _short(repr(sorted(tokenizer.get_vocab().items())).encode())


def _content(source: Source) -> str | None:
    folder = Path(source.location)
    if not source.is_local:
        folder = Path(snapshot_download(source.location, allow_patterns=["config.json"], **source.options))
    if folder.parent.name == "snapshots":  # in the hub's cache, a folder is named after its commit
        return folder.name
    names = (source.options["gguf_file"],) if "gguf_file" in source.options else _WEIGHTS
    weights = sorted(path for name in names for path in folder.glob(name))
    if not weights:
        return None
    state = hashlib.sha256()
    for path in (*sorted(folder.glob("*config.json")), *weights):
        found = path.stat()
        state.update(_digest(path, found.st_size, found.st_mtime_ns))
    return state.hexdigest()


@lru_cache  # size and time are there to be part of the cache's key
def _digest(path: Path, size: int, modified: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _short(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
