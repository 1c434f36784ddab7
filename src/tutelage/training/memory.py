"""A paper calculation of what a run needs, from sizes alone."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tutelage.data import Examples
from tutelage.losses.chunks import DEFAULT_MEMORY
from tutelage.models.head import output_head
from tutelage.recipe import Recipe

_GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One part of a run's memory."""

    name: str
    gibibytes: float
    knob: str
    """What lowers it."""


def estimate(
    recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel | None, examples: Examples
) -> list[Part]:
    """Estimate the peak memory of a step, part by part, and their sum.

    Weights, gradients and optimiser are counted exactly. Activations are estimated from the architecture: the
    inputs that a block keeps for its backward pass, 14 widths and 4 intermediate widths a token and layer.
    """
    train = recipe.train
    trained = sum(p.numel() for p in student.parameters())
    item = getattr(torch, recipe.student.dtype).itemsize
    settings = student.config.get_text_config(decoder=True)
    tokens = min(train.micro_batch_tokens, train.batch_size * max(len(e.prompt) + len(e.response) for e in examples))
    tokens = max(tokens, max(len(e.prompt) + len(e.response) for e in examples))
    head = output_head(student).weight.numel()
    parts = [
        Part("student's weights", trained * item / _GIB, "student.dtype, a smaller student"),
        Part("gradients", (trained * item + head * 4) / _GIB, "a smaller student, an adapter"),
        Part("optimiser", 2 * trained * item / _GIB, "an adapter"),
        Part(
            f"activations of {tokens:,} tokens",
            _activations(settings, tokens, train.gradient_checkpointing, train.precision) / _GIB,
            "train.micro_batch_tokens, train.gradient_checkpointing",
        ),
        Part("vocabulary engine", DEFAULT_MEMORY / _GIB, "–"),
    ]
    if teacher is not None and recipe.teacher is not None:
        size = sum(p.numel() for p in teacher.parameters()) * getattr(torch, recipe.teacher.dtype).itemsize
        width = teacher.config.get_text_config(decoder=True).hidden_size
        parts.append(Part("teacher's weights", size / _GIB, "teacher.dtype"))
        parts.append(Part("teacher's states", 20 * tokens * width * 4 / _GIB, "train.micro_batch_tokens"))
    return [*parts, Part("together", sum(part.gibibytes for part in parts), "")]


def _activations(settings, tokens: int, checkpointing: bool, precision: str) -> float:
    width = settings.hidden_size
    inner = getattr(settings, "intermediate_size", None) or getattr(settings, "d_ff", None) or 4 * width
    item = 2 if precision == "bfloat16" else 4
    a_layer = tokens * (14 * width + 4 * inner) * item
    kept = tokens * width * 4
    layers = settings.num_hidden_layers
    return layers * kept + a_layer if checkpointing else layers * a_layer
