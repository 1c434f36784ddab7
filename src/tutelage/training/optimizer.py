"""AdamW, its learning-rate schedule, and its state as named tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.config import Train
from tutelage.models.sharding import cut_like

STATE = ("exp_avg", "exp_avg_sq", "step")


def adamw(module: nn.Module, train: Train) -> torch.optim.AdamW:
    """Return AdamW over a module's trainable parameters; weight decay is for matrices that are no embeddings."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    kept = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=train.betas,
        eps=train.epsilon,
        fused=True,
    )


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Return the learning rate of a step (counted from 0) of a run of `steps`.

    Linear warm-up from 0 over `warmup_steps`, then the schedule down to `final_learning_rate`.

    >>> train = Train(steps=100, learning_rate=1.0, warmup_steps=10, schedule="linear")
    >>> [round(learning_rate(train, step, 100), 2) for step in (0, 4, 9, 55)]
    [0.1, 0.5, 1.0, 0.5]
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, steps - train.warmup_steps)
    reach = train.learning_rate - train.final_learning_rate
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "linear":
        return train.final_learning_rate + reach * (1 - progress)
    return train.final_learning_rate + reach * 0.5 * (1 + math.cos(math.pi * progress))


def state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named `exp_avg.<parameter>` and so on."""
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
        for key in STATE
    }


def load_state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put a state saved by `state_tensors` back, tensor by tensor; of what is cut, each process takes its part.

    A parameter that had made no step, as where all steps so far were skipped, has no state, here as there.

    Args:
        module: whose parameters they are of.
        optimizer: its optimiser.
        tensors: the state, by the names of `state_tensors`.

    Raises:
        KeyError: one of the tensors of a parameter is missing.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and f"step.{name}" in tensors:
            optimizer.state[parameter] = {key: _placed(key, tensors[f"{key}.{name}"], parameter) for key in STATE}


def _placed(key: str, tensor: Tensor, parameter: Tensor) -> Tensor:
    if key == "step" and parameter.device.type == "cpu":
        return tensor.cpu()
    return cut_like(tensor.to(parameter.device), parameter)
