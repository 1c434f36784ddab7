"""Scores on disk: shards of ragged rows under a manifest, found by the ids of the row.

A folder holds `MANIFEST.json` (whose scores they are, and size and SHA-256 of every file), files that belong to all
rows (the teacher's head), and `shard-….safetensors`. A shard is named after its rows and holds tensors of all of
them, one row after the other; where each row ends; and the rows' keys. What the tensors mean is for others to know.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.errors import InputError
from tutelage.rollouts.rollout import Rollout
from tutelage.sealing import Seal, write_whole

MANIFEST = "MANIFEST.json"
_SCHEMA = 1
_KEY_BYTES = 16
_OPEN_SHARDS = 64  # files kept open at a time; they are mapped, not read

Record = Mapping[str, Tensor]
"""Tensors of one row, by name; the first dimension differs from row to row."""


def row_keys(rollout: Rollout) -> list[bytes]:
    """Return what each sequence is found by: a hash of its prompt, its response and its mask.

    >>> first, other = row_keys(Rollout.of([[5, 6], [5]], [[7], [6, 7]]))
    >>> first == row_keys(Rollout.of([[5, 6]], [[7]], writer="teacher"))[0], first == other
    (True, False)
    """
    return [
        hashlib.blake2b(
            np.array([len(prompt), *prompt, *response], dtype="<i8").tobytes() + bytes(mask), digest_size=_KEY_BYTES
        ).digest()
        for prompt, response, mask in zip(rollout.prompts, rollout.responses, rollout.masks, strict=True)
    ]


class ScoreStore:
    """A folder of scores. Opening it checks every file that its manifest lists.

    Args:
        folder: where it is, or will be.
        fingerprint: what the scores depend on besides the text; a value of `None` is not compared.
        on_damage: told the path of a damaged file and what is wrong with it; the file is then forgotten. By default
            damage is an error.

    Raises:
        InputError: the scores are somebody else's, or a file is missing or damaged.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        on_damage: Callable[[Path, str], None] | None = None,
    ) -> None:
        self.folder = folder
        self._fingerprint = dict(fingerprint)
        self._on_damage = on_damage or _refuse
        self._files: dict[str, Seal] = {}
        self._where: dict[bytes, tuple[str, int]] = {}
        self._ends: dict[str, dict[str, Tensor]] = {}
        self._opened = lru_cache(_OPEN_SHARDS)(lambda name: safe_open(folder / name, framework="pt"))
        if (folder / MANIFEST).exists():
            self._read_manifest()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        """Whether there are scores of a row."""
        return key in self._where

    @property
    def size(self) -> int:
        """Size of all files."""
        return sum(seal.size for seal in self._files.values())

    def size_of(self, name: str) -> int:
        """Size of one file, 0 where it is not there."""
        return self._files[name].size if name in self._files else 0

    def add(self, keys: Sequence[bytes], records: Sequence[Record]) -> None:
        """Write rows as one shard; it is on the disk, and listed, when this returns.

        Args:
            keys: the rows' keys.
            records: their tensors, the same names in each.
        """
        if not self._files:
            self.enter({})
        self.enter(dict([self.write(keys, records)]))

    def write(self, keys: Sequence[bytes], records: Sequence[Record]) -> tuple[str, Seal]:
        """Write rows as one shard, as `add` does, without listing it: several processes may, each its own shards.

        Returns:
            Name and seal of the file, for `enter`.
        """
        name = f"shard-{hashlib.blake2b(b''.join(keys), digest_size=8).hexdigest()}.safetensors"
        tensors = {"keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)}
        for column in records[0]:
            parts = [record[column] for record in records]
            tensors[column] = torch.cat(parts).contiguous()
            tensors[f"ends/{column}"] = torch.tensor([len(part) for part in parts]).cumsum(0)
        return name, self._written(name, tensors)

    def enter(self, files: Mapping[str, Seal]) -> None:
        """List shards that were written; without any, the folder is known to be ours from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files |= files
        self._write_manifest()
        for name in files:
            self._index(name)

    def add_file(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
        """Write a file of its own, with notes for JSON; it is on the disk, and listed, when this returns."""
        if not self._files:
            self.enter({})
        self._files[name] = self._written(name, tensors, notes)
        self._write_manifest()

    def file(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and notes of a file of its own, `None` where it is not there."""
        if name not in self._files:
            return None
        with safe_open(self.folder / name, framework="pt") as opened:
            return load_file(self.folder / name), json.loads(opened.metadata()["notes"])

    def get(self, key: bytes) -> Record:
        """Return the tensors of one row; only they are read.

        Raises:
            KeyError: there are none.
        """
        name, row = self._where[key]
        shard, record = self._opened(name), {}
        for column, ends in self._ends[name].items():
            start = 0 if row == 0 else int(ends[row - 1])
            record[column] = shard.get_slice(column)[start : int(ends[row])]
        return record

    def _written(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> Seal:
        about = {"notes": json.dumps(notes or {})}
        return write_whole(self.folder / name, lambda path: save_file(dict(tensors), path, metadata=about))

    def _index(self, name: str) -> None:
        with safe_open(self.folder / name, framework="pt") as shard:
            keys, names = shard.get_tensor("keys").numpy().tobytes(), shard.keys()
            columns = [column.removeprefix("ends/") for column in names if column.startswith("ends/")]
            self._ends[name] = {column: shard.get_tensor(f"ends/{column}") for column in columns}
        for row in range(len(keys) // _KEY_BYTES):
            self._where[keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (name, row)

    def _read_manifest(self) -> None:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            files = {name: Seal.read(seal) for name, seal in manifest["files"].items()}
            schema, fingerprint = manifest["schema"], manifest["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError):
            self._on_damage(path, "cannot be read")
            return
        self._check_owner(schema, fingerprint)
        for name, seal in files.items():
            fault = seal.fault(self.folder / name)
            if fault is not None:
                self._on_damage(self.folder / name, fault)
                continue
            self._files[name] = seal
            if name.startswith("shard-"):
                self._index(name)

    def _check_owner(self, schema: int, fingerprint: Mapping[str, Any]) -> None:
        if schema != _SCHEMA:
            raise InputError(
                f"{self.folder} was written in format {schema}, this version reads {_SCHEMA}; name another "
                "teacher_cache.folder, or move this one away"
            )
        different = [
            f"{name}: {fingerprint.get(name)} there, {value} here"
            for name, value in self._fingerprint.items()
            if value is not None and fingerprint.get(name) != value
        ]
        if different:
            raise InputError(
                f"{self.folder} holds other scores than this recipe's ({'; '.join(different)}); name another "
                "teacher_cache.folder, or move this one away"
            )
        self._fingerprint = {**self._fingerprint, **fingerprint}

    def _write_manifest(self) -> None:
        files = {name: seal.as_dict() for name, seal in self._files.items()}
        content = json.dumps({"schema": _SCHEMA, "fingerprint": self._fingerprint, "files": files}, indent=1)
        write_whole(self.folder / MANIFEST, lambda path: path.write_text(content, encoding="utf-8"))


def _refuse(path: Path, fault: str) -> None:
    raise InputError(
        f"teacher cache: {path} {fault}; `tutelage cache RECIPE` captures what this file held anew and leaves the "
        "other files as they are"
    )
