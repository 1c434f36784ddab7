"""Hand-made records of evaluations on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.evaluation.record import Record, protocol_id, save_record
from tutelage.evaluation.score import Score

PROTOCOL = {"decoding": {"strategy": "greedy", "top_k": 0}, "items": "0123456789abcdef"}


def write_record(
    folder: Path,
    scores: Mapping[str, Score],
    *,
    task: str = "dolly",
    protocol: Mapping[str, Any] = PROTOCOL,
    method: str | None = None,
    **more: Any,
) -> Path:
    """Write a record of one task into a run's folder, which is made."""
    identity = protocol_id(protocol)
    metrics = {name: {**score.as_dict(), "protocol": identity} for name, score in scores.items()}
    model = {"name": folder.name, "path": str(folder), "identity": "", "parameters": 1000}
    folder.mkdir(parents=True, exist_ok=True)
    save_record(folder, Record(task, f"About {task}", model, None, metrics, {identity: protocol}, **more), scores)
    if method is not None:
        (folder / "config.yaml").write_text(f"method: {{name: {method}}}\n", encoding="utf-8")
    return folder


def mean_of(*values: float, better: Any = "higher", unit: str = "%") -> Score:
    """A plain mean over items that are called after their number."""
    return Score.of({f"rows.jsonl:{i}": value for i, value in enumerate(values)}, unit=unit, better=better)
