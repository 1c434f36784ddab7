"""A student whose teacher is its own start."""

import json

from tests.tiny import mapping

from tutelage.recipe import recipe_of
from tutelage.training.run import train

SILENT = {"report": lambda text: None}


def run(folder, name: str, method: dict):
    whole = mapping(folder, "supervised-kd", train={"steps": 20}, output=str(folder / name))
    whole["method"] |= method
    whole["teacher"] = {"model": whole["student"]["model"]}
    return whole["student"]["model"], train(recipe_of(whole), **SILENT)


def test_without_a_difference_there_is_no_gradient_but_rounding(tmp_path):
    _, result = run(tmp_path, "kd", {"cross_entropy": 0.0})
    first = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[1])
    assert first["step"] == 1
    assert abs(first["loss"]) < 1e-6
    assert first["gradient_norm"] < 1e-5


def test_self_distillation_learns_and_stays_nearer_to_its_start(tmp_path):
    """With half cross-entropy: lower loss on the words than at the start, nearer to the start than fine-tuning."""
    found = {share: run(tmp_path, f"share-{share}", {"cross_entropy": share})[1] for share in (0.5, 1.0)}
    last = {share: r.evaluations[-1]["metrics"] for share, r in found.items()}
    first = found[0.5].evaluations[0]["metrics"]
    assert last[0.5]["loss"]["value"] < first["loss"]["value"]
    assert 0 < last[0.5]["forward_kl"]["value"] < last[1.0]["forward_kl"]["value"]
