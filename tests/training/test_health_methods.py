"""Text that teaches little or nothing: every method gets through it without a number that is not finite."""

import json
import math
from collections.abc import Sequence

import pytest
from tests.tiny import mapping

from tutelage.errors import DivergedError
from tutelage.methods import METHODS
from tutelage.recipe import recipe_of
from tutelage.rollouts.mixed import MixedSampler
from tutelage.rollouts.rollout import Rollout
from tutelage.rollouts.samplers import StudentSampler
from tutelage.training.run import train

SILENT = {"report": lambda text: None}
STOP, LONGEST = 1, 5
TEXTS = {
    "nothing but the end": lambda row: (STOP,),
    "as long as it may be": lambda row: (3,) * LONGEST,
    "one at its end, the others too long": lambda row: (STOP,) if row == 0 else (3,) * LONGEST,
    "one empty": lambda row: () if row == 0 else (4, STOP),
}
ADAPTIVE = {"gkd": {"student_fraction": 1.0}, "imitkd": {"schedule": "constant", "rate": 0.0}}
OTHER_OPTIONS = [
    (
        "minillm",
        {"estimates": "rollout", "whiten": True, "length_normalisation": "remaining", "average_over": "tokens"},
    ),
    ("minillm", {"importance": "full", "length_normalisation": "none", "clip": None}),
    ("minillm", {"estimates": "rollout", "baseline": "leave_one_out", "samples": 2}),
    ("minillm-ranking", {"reference": "data", "pairs": "all", "rank_by": "sequence"}),
    ("gkd-reward", {"baseline": "batch", "samples": 1}),
    ("gkd-reward", {"baseline": "greedy", "alpha": 0.0}),
    ("moment-matching", {"estimator": "sampled", "unit": "sequence", "gradient_penalty": 10.0}),
    ("f-distill", {"divergence": "rkl", "through_sampling": True, "exact": False}),
    ("distribution-matching", {"unit": "sequence"}),
    ("imitkd", {"loss": "opt", "schedule": "constant", "rate": 0.0}),
]


def student_writes(patch: pytest.MonkeyPatch, text) -> None:
    def sample(self, examples: Sequence, step: int) -> Rollout:
        rows = [example for example in examples for _ in range(self.samples)]
        responses = [text(row) for row in range(len(rows))]
        writer = "mixed" if isinstance(self, MixedSampler) else "student"
        return Rollout.of(
            [e.prompt for e in rows],
            responses,
            writer=writer,
            items=[e.item for e in rows],
            logps=[(-3.0,) * len(response) for response in responses],
        )

    for sampler in (StudentSampler, MixedSampler):
        patch.setattr(sampler, "sample", sample)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("method", "options"), [*((name, ADAPTIVE.get(name, {})) for name in METHODS), *OTHER_OPTIONS], ids=str
)
def test_every_method_learns_from_odd_text_without_a_number_that_is_not_finite(
    tmp_path, monkeypatch, method, options, text
):
    student_writes(monkeypatch, TEXTS[text])
    whole = mapping(tmp_path, method, train={"steps": 3})
    whole["method"] |= options
    run = train(recipe_of(whole), **SILENT)
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in steps if "loss" in line]
    assert len(steps) == 3
    for line in steps:
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        assert all(map(math.isfinite, numbers.values())), numbers
        assert "skipped_steps" not in line


@pytest.mark.parametrize("method", ["on-policy-kd", "minillm", "gkd-reward", "minillm-ranking"])
def test_a_batch_with_nothing_in_the_loss_is_not_applied(tmp_path, monkeypatch, method):
    student_writes(monkeypatch, lambda row: ())
    with pytest.raises(DivergedError, match=r"none of the \d+ sequences has a token in the loss at step 1"):
        train(recipe_of(mapping(tmp_path, method)), **SILENT)
    skipping = mapping(tmp_path, method, train={"on_nonfinite": "skip"}, output=str(tmp_path / "skipping"))
    run = train(recipe_of(skipping), **SILENT)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
