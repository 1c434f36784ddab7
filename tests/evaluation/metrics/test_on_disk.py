"""Every metric of probabilities in one task, on models and data on disk, as `tutelage evaluate` measures them."""

import json
import math

import pytest
from tests import tiny

from tutelage.config import Model
from tutelage.evaluation.assess import assess
from tutelage.evaluation.record import load_records, load_scores
from tutelage.evaluation.task import task_of

METRICS = [
    "loss",
    "choices",
    "calibration",
    {"name": "exposure_bias", "samples": 1, "lengths": [2]},
    "risks",
    {"name": "divergences", "texts": ["student_text", "references", "teacher_text", "answers"]},
    {"name": "moments", "critic_steps": 2},
    {"name": "draft", "measured_items": 2},
]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_all_of_them_at_once(kind: str, tmp_path) -> None:
    rows = [
        {"prompt": "a b c"[: 1 + 2 * (n % 3)], "completion": "d e", "choices": ["f", "g h"], "answer": n % 2}
        for n in range(5)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_of({
        "name": "toy",
        "description": "a toy",
        "data": {"source": str(tmp_path / "rows.jsonl"), "choices": "choices", "answer": "answer"},
        "decoding": {"max_new_tokens": 5},
        "metrics": METRICS,
    })  # fmt: skip
    models = [Model(model=str(tiny.write_model(tmp_path / f"{seed}", seed, kind))) for seed in (1, 2)]
    record = assess(
        [task], student=models[0], teacher=models[1], name="s", out=tmp_path / "out", report=lambda line: None
    )["toy"]
    assert len(record.metrics) == 3 + 1 + 4 + 4 + 4 + 20 + 10 + 10
    for name, found in record.metrics.items():
        assert math.isfinite(found["value"]), name
        assert found["low"] <= found["high"], name
    assert set(record.curves) == {"reliability", "exposure_bias"}
    divergences = record.protocols[record.metrics["jsd_answers"]["protocol"]]
    assert divergences["seeds"] == [0]
    assert divergences["max_new_tokens"] == 5
    stored = load_records(tmp_path / "out")["toy"]
    for name, score in load_scores(tmp_path / "out", stored).items():
        assert score.measurement().value == pytest.approx(record.metrics[name]["value"]), name
