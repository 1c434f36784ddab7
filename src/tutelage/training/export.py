"""The finished student: written aside, loaded again, compared with the one that was trained, and then named."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.models.gathering import Written, write_model
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model
from tutelage.models.sharding import is_sharded
from tutelage.models.shell import is_adapted
from tutelage.reports.card import FILE, model_card
from tutelage.rollouts.rollout import Rollout
from tutelage.sealing import sync
from tutelage.training.manifest import facts_of, faults, seal
from tutelage.training.setup import Setup, load_student, model_of_checkpoint
from tutelage.world import world

TOLERANCE = 1e-3
"""Largest difference of a logit between the student and its copy, as a share of the largest logit."""
ROUNDED = 0.05
"""The same where an adapter was added into weights of 16 bits, which rounds the sum."""
_ROWS, _TOKENS = 4, 64  # of the probe


def write_export(setup: Setup, steps: int, evaluations: Sequence[Mapping[str, Any]]) -> Path:
    """Write the student beside the run's `model`, load it, and compare the logits of both on a few rows.

    Its card comes after the seal, which leaves it out: people are to fill it in.

    Args:
        setup: the run with the trained student.
        steps: optimiser steps done, for the manifest.
        evaluations: step and metrics of each, for the card.

    Returns:
        The folder, for `name_export`.

    Raises:
        TutelageError: the copy computes something else.
    """
    probe, staging = _probe(setup), setup.folder / ".staging-model"
    here = _logits(setup.student, probe)
    world().main_does(lambda: shutil.rmtree(staging, ignore_errors=True))
    files = write_student(setup, staging)
    world().main_does(lambda: _tidy(setup, staging))
    compare = partial(_compare, setup, staging, probe, here)
    if is_sharded(setup.student.model):  # its passes take all processes
        compare()
    else:
        world().main_does(compare)
    world().main_does(lambda: _seal(setup, staging, files, steps, evaluations))
    return staging


def write_student(setup: Setup, folder: Path) -> list[Written]:
    """Write the student as a Hugging Face folder, its tokenizer beside it; as `write_model` does."""
    files = write_model(setup.student.model, folder)
    world().main_does(lambda: setup.tokenizer.save_pretrained(folder) and None)
    return files


def _tidy(setup: Setup, staging: Path) -> None:
    """Make of a written student what users are to have."""
    if setup.recipe.train.merge_adapter and is_adapted(setup.student.model):
        _merge(setup, staging)
    (staging / FILE).unlink(missing_ok=True)  # PEFT's own


def _compare(setup: Setup, staging: Path, probe: Rollout, here: Tensor) -> None:
    copy = load_student(setup.recipe, model_of_checkpoint(setup.recipe, staging), setup.tokenizer)
    difference, largest = (here - _logits(copy, probe)).abs().max().item(), here.abs().max().item()
    exact = setup.recipe.student.dtype == "float32" or not setup.recipe.train.merge_adapter
    if not difference <= (TOLERANCE if exact else ROUNDED) * max(1.0, largest):
        raise TutelageError(
            f"the student written to {staging} is not the one that was trained: its logits differ by up to "
            f"{difference:.2g}; the last checkpoint is whole, please report this"
        )


def _seal(
    setup: Setup, staging: Path, files: Sequence[Written], steps: int, evaluations: Sequence[Mapping[str, Any]]
) -> None:
    seal(staging, files, step=steps)
    card = staging / FILE
    card.write_text(model_card(setup, evaluations), encoding="utf-8", errors="replace")
    sync(card)


def _merge(setup: Setup, folder: Path) -> None:
    """Put one whole model in the place of an adapter that was just written."""
    spec = model_of_checkpoint(setup.recipe, folder)
    adapted: Any = load_model(spec, "student", seed=setup.recipe.seed)
    merged = adapted.merge_and_unload(safe_merge=True)
    shutil.rmtree(folder)
    merged.save_pretrained(folder)
    setup.tokenizer.save_pretrained(folder)


def name_export(staging: Path) -> Path:
    """Give a written student its name, in place of an older one."""
    folder = staging.with_name("model")
    trash = staging.with_name(".trash-model")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
    staging.rename(folder)
    sync(folder.parent)
    shutil.rmtree(trash, ignore_errors=True)
    return folder


def is_exported(folder: Path, steps: int) -> bool:
    """Whether a run's `model` is the student after that many steps, and complete."""
    return facts_of(folder).get("step") == steps and not faults(folder, contents=False)


def _probe(setup: Setup) -> Rollout:
    """A few rows of the training data, cut short; prompts are continued by themselves where there is no response."""
    rows = setup.texts.train.kept[:_ROWS]
    prompts = [row.prompt[:_TOKENS] for row in rows]
    return Rollout.of(prompts, [(row.response or row.prompt)[:_TOKENS] for row in rows])


@torch.no_grad()
def _logits(model: LanguageModel, probe: Rollout) -> Tensor:
    was_training = model.network.training
    model.network.eval()
    logits = model.head.gathered().logits(model.hidden(probe)).float()
    model.network.train(was_training)
    return logits
