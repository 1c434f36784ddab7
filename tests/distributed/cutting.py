"""What a process of `test_cut_models` does: cut models of many kinds, and hold them against themselves whole.

`torchrun … cutting.py FOLDER` leaves in `FOLDER/found-RANK` what the process found for each of `CASES`. The processes
are taken for those of two hosts.
"""

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tests.models.tiny import ENCODER_DECODERS, TOKENIZER, spread
from tests.tiny_models import STOP, build, ragged
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tutelage.config import Adapter, Decoding, Model
from tutelage.errors import InputError
from tutelage.losses.head import gathered
from tutelage.models import adapters
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import freeze, load_model
from tutelage.models.sharding import shard
from tutelage.models.sources import Source
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Rollout
from tutelage.world import World, joined, leave

WAYS = {
    "beam": Decoding(max_new_tokens=6, strategy="beam", beams=2),
    "sampled": Decoding(max_new_tokens=6),
    "sampled by transformers": Decoding(max_new_tokens=6, backend="generate", batch_size=2),
}


@dataclass(frozen=True)
class Case:
    """A model, the adapter that learns on it if there is one, and over which processes it is cut."""

    model: Callable[[], PreTrainedModel]
    adapter: Adapter | None = None
    within: Literal["run", "host"] = "run"


def _built(name: str) -> Callable[[], PreTrainedModel]:
    return lambda: build(name, 3)


def _fresh(kind: str, like: str, **changes: Any) -> Callable[[], PreTrainedModel]:
    spec = Model(from_config={"model_type": kind, **ENCODER_DECODERS[like], **changes}, device="cpu")
    return lambda: spread(load_model(spec, "student", seed=0, tokenizer=TOKENIZER)).double()


LINES = ("q_proj", "v_proj", "down_proj")
CASES = {
    "t5": Case(_built("t5")),
    "t5 with a head of its own": Case(_fresh("t5", "t5", tie_word_embeddings=False)),
    "bart": Case(_built("bart")),
    "bart within the host": Case(_built("bart"), within="host"),
    "mbart": Case(_fresh("mbart", "bart")),
    "marian with two tables": Case(_fresh("marian", "bart", share_encoder_decoder_embeddings=False)),
    "t5gemma": Case(_fresh("t5gemma", "t5gemma")),
    "gpt2": Case(_built("gpt2")),
    "lora": Case(_built("llama"), Adapter(rank=3, targets=LINES)),
    "lora within the host": Case(_built("llama"), Adapter(rank=3, targets=LINES), "host"),
    "dora": Case(_built("llama"), Adapter(rank=3, targets=LINES, dora=True)),
    "lora on t5": Case(_built("t5"), Adapter(rank=2, targets=("q", "wo"))),
}


def _adapted(base: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """A base with an adapter that has learnt something."""
    model = adapters.begin(base, Source("student", "", "", True), adapter, 0)
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter + 0.3 * torch.randn_like(parameter)
    return cast(PreTrainedModel, model.double().eval())


def _logits(model: LanguageModel, rollout: Rollout) -> Tensor:
    return model.head.gathered().logits(model.hidden(rollout))


def _gradients(model: LanguageModel, rollout: Rollout) -> dict[str, Tensor]:
    """Put together: of a sum over positions, so those of the processes' sequences add up to those of all."""
    loss = nn.functional.cross_entropy(_logits(model, rollout), model.targets(rollout), reduction="sum")
    loss.backward()
    return {n: gathered(p.grad).clone() for n, p in model.model.named_parameters() if p.grad is not None}


def _held(model: nn.Module) -> float:
    """The share of a model's weights that this process has."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(part.numel() for part in parts) / sum(p.numel() for p in model.parameters())


def _found(case: Case, everyone: World) -> dict[str, Any]:
    text = ragged()
    mine = text.select(everyone.share(len(text)))
    one = LanguageModel(case.model() if case.adapter is None else _adapted(case.model(), case.adapter), (STOP,))
    two = LanguageModel(copy.deepcopy(one.model), (STOP,))
    shard(two.model, "student", case.within)
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["logits"] = [_logits(model, text) for model in (one, two)]
    for name, decoding in WAYS.items():
        found[name] = [decode(model, text.prompts, decoding, seed=1).responses for model in (one, two)]
    found["gradients"] = [_gradients(one, text), _gradients(two, mine)]
    found["held"] = _held(two.model)
    found["names"] = [list(model.model.state_dict()) for model in (one, two)]
    found["buffers"] = [dict(model.model.named_buffers()) for model in (one, two)]
    if case.adapter is not None:
        peft: Any = one.model
        found["adapter"] = [
            {name: tensor for name, tensor in peft.state_dict().items() if "lora_" in name},
            adapters.whole_adapter(two.model),
        ]
    return found


def _common_weights(which: Literal["student", "both"]) -> dict[str, Any]:
    """The logits of a student and of a teacher that is its base, weights in common, before and after they are cut."""
    base = freeze(build("llama", 3))
    models = [_adapted(adapters.sharing_weights(base), Adapter(rank=3, targets=LINES)), base]
    pair = [LanguageModel(model, (STOP,)) for model in models]
    with torch.no_grad():
        before = [_logits(model, ragged()) for model in pair]
        for model in pair[: 1 if which == "student" else 2]:
            shard(model.model, "student")
        return {"logits": [before, [_logits(model, ragged()) for model in pair]], "held": [_held(m) for m in models]}


def _refusals() -> list[str]:
    """What is said of models that are put together in ways that nobody knows."""
    more, tied, adapted = (build("t5", 3) for _ in range(3))
    more.register_parameter("odd", nn.Parameter(torch.zeros(3)))
    stacks: Any = tied
    stacks.decoder.final_layer_norm.weight = stacks.encoder.final_layer_norm.weight
    said = []
    for model in (more, tied, _adapted(adapted, Adapter(rank=2, targets=("embed_tokens",)))):
        try:
            shard(model, "teacher")
        except InputError as error:
            said.append(str(error))
    return said


def main() -> None:
    torch.set_num_threads(1)
    with joined() as everyone:
        os.environ["LOCAL_WORLD_SIZE"] = str(everyone.size // 2)
        found: dict[str, Any] = {name: _found(case, everyone) for name, case in CASES.items()}
        found |= {f"common weights, {which} cut": _common_weights(which) for which in ("student", "both")}
        found["refusals"] = _refusals()
        torch.save(found, Path(sys.argv[1]) / f"found-{everyone.rank}")


if __name__ == "__main__":
    main()
    leave(0)
