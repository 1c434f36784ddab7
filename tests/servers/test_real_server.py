"""A real vLLM beside the same model in this process; docs/served-teacher.md says how it is started.

TUTELAGE_SERVER is its url, TUTELAGE_SERVED_MODEL the folder of the model, which is served under that name;
TUTELAGE_PROTOCOL=sglang has an SGLang asked instead.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

from tutelage import config
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.models.served_teacher import ServedTeacher
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import Rollout
from tutelage.training.run import train

PROTOCOL: Any = os.environ.get("TUTELAGE_PROTOCOL", "vllm")
URL, MODEL = os.environ.get("TUTELAGE_SERVER"), os.environ.get("TUTELAGE_SERVED_MODEL")
pytestmark = [
    pytest.mark.real_server,
    pytest.mark.skipif(not (URL and MODEL), reason="set TUTELAGE_SERVER and TUTELAGE_SERVED_MODEL to a running vLLM"),
]
TEXTS = (
    ("Why does water boil sooner in the mountains?", " Because the air presses less on it there."),
    ("def fibonacci(n):\n", "    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n"),
    ("The capital of France is", " Paris, and that of Italy is Rome."),
    ("Once upon a time", " there was a lighthouse keeper who counted 1,024 ships and 37 gulls."),
)


def text() -> Rollout:
    tokenizer = load_tokenizer(config.Model(model=MODEL), "teacher")
    return Rollout.of(*zip(*[map(tokenizer.encode, pair) for pair in TEXTS], strict=True))


def local(dtype: str) -> LocalTeacher:
    return LocalTeacher(LanguageModel(load_model(config.Model(model=MODEL, dtype=dtype), "teacher", seed=0), ()))  # pyright: ignore


def test_its_log_probabilities_are_those_of_the_model_here() -> None:
    rollout = text()
    served = ServedTeacher(config.Teacher(model=MODEL, url=URL, protocol=PROTOCOL, top_k=64))
    ids, logp, target = served.scores(rollout, served.vocabulary)
    targets = torch.tensor(rollout.targets)
    for dtype in ("float32", "bfloat16"):
        teacher = local(dtype)
        whole = teacher.head.logits(teacher.hidden(rollout)).float().log_softmax(-1)
        gap = (target - whole.gather(1, targets[:, None]).squeeze(1)).abs()
        gaps = (logp - whole.gather(1, ids)).abs()[logp.exp() > 1e-3]
        same = (ids[:, 0] == whole.argmax(-1)).float().mean()
        print(
            f"{dtype}: {len(targets)} tokens; |difference| of the next token's log-probability: mean {gap.mean():.4f}, "
            f"most {gap.max():.4f}; of tokens above 0.1 %: mean {gaps.mean():.4f}, most {gaps.max():.4f}; "
            f"same top token: {same:.3f}; mass of the 64: {logp.exp().sum(1).mean():.4f}"
        )
        assert gap.mean() < 0.1
        assert same > 0.9


@pytest.mark.parametrize("method", ["supervised-kd", "gkd"])
def test_a_run(tmp_path: Path, method: str) -> None:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in TEXTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "method": {
            "name": method,
            **({"student_fraction": 1.0, "student_decoding": {"max_new_tokens": 8}} if method == "gkd" else {}),
        },
        "student": {"from_config": {"model_type": "llama", **tiny.LLAMA}, "tokenizer": MODEL},
        "teacher": {"model": MODEL, "url": URL, "protocol": PROTOCOL},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "train": {"steps": 2, "batch_size": 4},
        "output": str(tmp_path / "run"),
    }
    run = train(recipe_of(whole), report=print)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["divergence"] > 0 for line in lines)
    print([(line["divergence"], line["teacher_cross_entropy"], line["seconds"]) for line in lines])
