"""What a process of `test_sharing` does: compute what all processes compute together, and say how many passes it made.

`torchrun … scores.py FOLDER CUT` writes `FOLDER/scores-CUT-SIZE-RANK.json`; CUT is `none`, `run`, or `host`: two
processes are then taken for a host.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from tests.tiny import tokenizer
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from tutelage.evaluation.agreement import agreement, loss_on
from tutelage.methods import METHODS
from tutelage.methods.moment_game import baselines
from tutelage.methods.objective import Context
from tutelage.methods.policy_gradient import sequence_logps
from tutelage.methods.reinforced import score
from tutelage.models.language_model import LanguageModel
from tutelage.models.sharding import shard
from tutelage.models.teachers import LocalTeacher
from tutelage.randomness import generator
from tutelage.rewards import Reward
from tutelage.rollouts.rollout import Rollout
from tutelage.world import joined, leave

TOKENS = 24
Cut = Literal["none", "run", "host"]


def text() -> Rollout:
    """Thirteen sequences of uneven length."""
    draws = generator(0, "text")
    prompts = [draws.integers(2, 22, size=draws.integers(1, 5)).tolist() for _ in range(13)]
    responses = [draws.integers(2, 22, size=draws.integers(1, 8)).tolist() for _ in range(13)]
    return Rollout.of(prompts, responses, writer="student")


def loaded(folder: Path, role: str, cut: Cut) -> LanguageModel:
    model = LanguageModel(AutoModelForCausalLM.from_pretrained(folder / f"llama-{role}"))
    if cut != "none":
        shard(model.model, role, cut)
    return model


def scores(folder: Path, cut: Cut) -> dict[str, Any]:
    """Everything that is shared; the student's passes, the texts with a reward, and the share of weights in here."""
    student, teacher_model = loaded(folder, "student", cut), loaded(folder, "teacher", cut)
    teacher = LocalTeacher(teacher_model, student.device)
    rollout, passes, rewarded = text(), [0], []
    student.network.base_model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    method = METHODS["moment-matching"]()
    modules = method.modules(student, teacher, 0)
    examples: Any = [SimpleNamespace(prompt_text=str(row), reference="a b c d", where=row) for row in range(13)]
    context = Context(student, teacher, None, modules, tokenizer(), examples, TOKENS)

    def seen(*columns: Any) -> list[float]:
        assert columns[0], "a reward is asked about something"
        rewarded.extend(columns[0])
        return Reward(kind="rouge_l").scorer()(*columns)

    reward: Any = SimpleNamespace(kind="rouge_l", needs_reference=True, scale=1.0, scorer=lambda: seen)
    found = {
        "logps": sequence_logps(rollout, context),
        "baselines": baselines(method, rollout, context).values["baseline"],
        "loss": loss_on(student, rollout, TOKENS).as_dict(),
        "agreement": {n: m.as_dict() for n, m in agreement(student, teacher, rollout, TOKENS).items()},
        "rewards": score(reward, rollout, context),
    }
    asked = list(rewarded)
    alone = Context(student, teacher, None, modules, tokenizer(), examples[:1], TOKENS)
    found["reward of one response"] = score(reward, rollout.select([0]), alone)
    tensors = list(student.model.parameters())
    here = sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)
    return {
        "found": found,
        "passes": passes[0],
        "rewarded": asked,
        "parts": len(rollout.micro_batches(TOKENS)),
        "share": here / sum(t.numel() for t in tensors),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    if sys.argv[2] == "host":
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    with joined() as everyone:
        path = place / f"scores-{sys.argv[2]}-{everyone.size}-{everyone.rank}.json"
        path.write_text(json.dumps(scores(place, cast(Cut, sys.argv[2]))))
    leave(0)
