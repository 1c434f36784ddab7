"""The loop. It is blind to the method: sample, count, go backward, step, look, save.

Every random draw depends on the seed and the step alone (`tutelage.randomness`), so a resumed run needs
nothing but weights, optimiser state and the number of steps done.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.evaluation.evaluate import evaluate
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Rollout
from tutelage.training.checkpoint import Checkpoint, save_checkpoint
from tutelage.training.collections import Collections
from tutelage.training.optimizer import learning_rate, load_state_tensors, state_tensors
from tutelage.training.progress import Display
from tutelage.training.setup import Setup
from tutelage.training.signals import StopRequest
from tutelage.training.tracking import JsonLines, trackers
from tutelage.training.update import Updater


class Loop:
    """One run of a method, from the first step or from a checkpoint to the last.

    Args:
        setup: models, text and recipe.
        display: shows what happens.
        stop: asked at every step whether the run has been told to stop.
        checkpoint: where to go on from.
    """

    def __init__(self, setup: Setup, display: Display, stop: StopRequest, checkpoint: Checkpoint | None = None) -> None:
        self._setup, self._display, self._stop = setup, display, stop
        self._train = setup.recipe.train
        self._updater = Updater(setup)
        self._collections = Collections(setup, self._updater.own)
        self._done = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._evaluations: list[dict[str, Any]] = []
        if checkpoint is not None:
            self._restore(checkpoint)
        self._trackers = trackers(setup.folder, self._train.trackers, self._done)
        self._samples = JsonLines(setup.folder / "samples.jsonl", self._done)

    def run(self) -> list[dict[str, Any]]:
        """Train to the last step; return the evaluations, the first one of the untrained student.

        Raises:
            DivergedError: a loss or gradient was not finite.
            Stopped: the run was told to stop, and has saved.
        """
        if self._done == 0:
            self._evaluate()
        while self._done < self._setup.steps:
            metrics = self._step(self._done)
            self._done += 1
            if self._done % self._train.log_every == 0 or self._done == self._setup.steps:
                self._log(metrics)
            self._display.step(self._done, metrics)
            self._look_and_save()
        for tracker in (*self._trackers, self._samples):
            tracker.close()
        return self._evaluations

    def _look_and_save(self) -> None:
        last = self._done == self._setup.steps
        every, save_every = self._setup.recipe.evaluation.every, self._train.save_every
        if last or (every and self._done % every == 0):
            self._evaluate()
        stopping = self._stop.requested and not last
        if last or stopping or (save_every and self._done % save_every == 0):
            self._save()
        if stopping:
            self._stop.leave(f"saved at step {self._done} of {self._setup.steps}; the same command goes on from here")

    def _step(self, step: int) -> dict[str, Any]:
        """Make one optimiser step; return its metrics."""
        torch.manual_seed(int(generator(self._setup.recipe.seed, "dropout", step).integers(2**62)))
        self._seconds.clear()
        teacher = self._setup.teacher
        with self._timed("sampling"), self._updater.autocast():
            rollout = self._collections.batch(step)
        before = teacher.seconds if teacher else 0.0
        with self._timed("update"):
            sums = self._updater.step(rollout, step)
        self._seconds["teacher"] = (teacher.seconds if teacher else 0.0) - before
        self._seconds["update"] -= self._seconds["teacher"]
        return self._metrics(rollout, sums, step)

    def _metrics(self, rollout: Rollout, sums: Mapping[str, float], step: int) -> dict[str, Any]:
        rollout = rollout.select([row for row, writer in enumerate(rollout.writers) if writer != "text"])
        positions = rollout.positions
        inner_epochs = self._setup.recipe.method.plan.inner_epochs
        plain = {name: value for name, value in sums.items() if name == "loss" or name.startswith("gradient_norm")}
        means = {
            name: value / sums.get(f"count/{name}", positions)
            for name, value in sums.items()
            if name not in plain and not name.startswith("count/") and sums.get(f"count/{name}") != 0
        }
        written = sum(writer == "student" for writer in rollout.writers)
        lengths = [len(response) for response in rollout.responses]
        ended = sum(r[-1] in self._setup.student.stop_ids for r in rollout.responses if r)
        return {
            **plain,
            **means,
            "learning_rate": learning_rate(self._train, step, self._setup.steps),
            "epoch": self._setup.order.epoch(step + 1, self._train.batch_size) / inner_epochs,
            "tokens": positions,
            "response_length": sum(lengths) / len(lengths),
            "ended": ended / len(lengths),
            "student_text": written / len(rollout),
            "seconds": dict(self._seconds),
        }

    def _evaluate(self) -> None:
        validation = self._setup.texts.validation
        if validation is None:
            return
        with self._timed("evaluation"), self._updater.autocast():
            result = evaluate(
                self._setup.student,
                self._setup.teacher,
                validation.kept,
                self._setup.recipe.evaluation,
                self._setup.tokenizer,
                micro_batch_tokens=self._train.micro_batch_tokens,
                seed=self._setup.recipe.seed,
                vocabulary=self._setup.vocabulary,
                critics=self._updater.own,
                on_progress=self._display.busy,
            )
        metrics = {name: measurement.as_dict() for name, measurement in result.metrics.items()}
        self._evaluations.append({"step": self._done, "metrics": metrics})
        self._log({"evaluation": metrics})
        self._collections.sampler.observe({name: m.value for name, m in result.metrics.items()})
        self._display.evaluation(self._done, result.metrics)
        for sample in result.samples:
            self._samples.log(self._done, sample)

    def _log(self, metrics: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(self._done, metrics)

    def _save(self) -> None:
        self._display.busy("saving", 0, 1)
        tensors = {
            f"{name}/{key}": tensor
            for name, module in self._updater.modules.items()
            for key, tensor in state_tensors(module, self._updater.optimizers[name]).items()
        }
        for name, module in self._updater.own.items():
            tensors |= {f"own/{name}/{key}": tensor for key, tensor in module.state_dict().items()}
        state = {
            "step": self._done,
            "steps": self._setup.steps,
            "data": self._setup.texts.fingerprint,
            "evaluations": self._evaluations,
            "sampler": self._collections.sampler.state(),
            "collection": self._collections.state(self._done),
        }
        folder = self._setup.folder / "checkpoints"
        save_checkpoint(folder, self._done, self.write_model, tensors, state, self._train.keep_checkpoints)

    def write_model(self, folder: Path) -> None:
        """Write the student as a Hugging Face folder that `from_pretrained` loads."""
        self._setup.student.model.save_pretrained(folder)
        self._setup.tokenizer.save_pretrained(folder)

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors(), checkpoint.state
        for name, module in self._updater.modules.items():
            load_state_tensors(module, self._updater.optimizers[name], _under(f"{name}/", tensors))
        for name, module in self._updater.own.items():
            module.load_state_dict(_under(f"own/{name}/", tensors))
        self._done = checkpoint.step
        self._evaluations = state["evaluations"]
        self._collections.sampler.restore(state["sampler"])
        self._collections.restore(state["collection"])

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self._display.phase(phase)
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
