"""The seal of a folder: a list of its files with sizes and checksums, written when all of them are on the disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.models.gathering import Written
from tutelage.sealing import Seal, sync

MANIFEST = "MANIFEST.json"
SCHEMA = 2


def seal(folder: Path, written: Sequence[Written] = (), **facts: Any) -> None:
    """Sync every file, list them in the manifest, and sync that and the folders too.

    Args:
        folder: a finished folder without a manifest.
        written: files in it that are on the disk already, with their seals.
        facts: what else the manifest says, for JSON.
    """
    files = {file.name: file.seal.as_dict() for file in written}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name not in files:
            sync(path)
            files[name] = Seal.of(path).as_dict()
    manifest = folder / MANIFEST
    manifest.write_text(
        json.dumps({"schema": SCHEMA, **facts, "files": dict(sorted(files.items()))}, indent=1), encoding="utf-8"
    )
    sync(manifest)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        sync(path)
    sync(folder)


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what a folder's manifest says; nothing where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def faults(folder: Path, contents: bool = True) -> dict[str, str]:
    """Say what is wrong with a sealed folder.

    Args:
        folder: the folder.
        contents: compare checksums too, not only sizes.

    Returns:
        By file, what is wrong with it; empty if the folder is as it was sealed.
    """
    if not (folder / MANIFEST).is_file():
        return {MANIFEST: f"incomplete (no {MANIFEST})"}
    found = facts_of(folder)
    schema, listed = found.get("schema"), found.get("files")
    if not isinstance(listed, Mapping) or not all(map(_is_entry, listed.values())) or not isinstance(schema, int):
        return {MANIFEST: f"{MANIFEST} is damaged"}
    if schema != SCHEMA:
        return {MANIFEST: f"{MANIFEST} has schema {schema}, this version of tutelage reads {SCHEMA}"}
    checked = {name: Seal.read(entry).fault(folder / name, contents) for name, entry in listed.items()}
    return {name: f"{name} {fault}" for name, fault in checked.items() if fault}


def _is_entry(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("size"), int) and isinstance(value.get("sha256"), str)
