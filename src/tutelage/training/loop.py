"""The loop. It is blind to the method: sample, count, go backward, step, look, save.

Every random draw depends on the seed and the step alone (`tutelage.randomness`), so a resumed run needs
nothing but weights, optimiser state and the number of steps done. A step or an evaluation that a signal cuts short
is therefore thrown away, the run saved as of its last finished step, and what was thrown away done again later.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch

from tutelage.data import Examples
from tutelage.errors import DivergedError, DoesNotFitError, InputError
from tutelage.evaluation.evaluate import Result, evaluate
from tutelage.models.sharding import load_whole
from tutelage.randomness import generator
from tutelage.rollouts.rollout import Rollout
from tutelage.training.bad_batches import BadBatches
from tutelage.training.checkpoint import Checkpoint, Contents, save_checkpoint, set_aside, steps_kept, tidy
from tutelage.training.collections import Collections
from tutelage.training.disk import checkpoint_bytes
from tutelage.training.export import write_student
from tutelage.training.health import Watch
from tutelage.training.keeping import best_step, check_rule
from tutelage.training.nonfinite import StepRefused
from tutelage.training.optimizer import learning_rate, load_state_tensors, state_tensors
from tutelage.training.out_of_memory import Sizes, mode_kept
from tutelage.training.progress import Display
from tutelage.training.setup import Setup
from tutelage.training.signals import Abandoned, StopRequest
from tutelage.training.tracking import json_lines, trackers
from tutelage.training.update import Updater
from tutelage.world import world


class Loop:
    """One run of a method, from the first step or from a checkpoint to the last.

    Args:
        setup: models, text and recipe.
        display: shows what happens.
        stop: told what may be abandoned when the run is to stop.
        checkpoint: where to go on from.
        identity: what the run depends on, for its checkpoints.
        reset_optimizer: leave the optimisers' state in the checkpoint and begin with a fresh one.
    """

    def __init__(
        self,
        setup: Setup,
        display: Display,
        stop: StopRequest,
        checkpoint: Checkpoint | None = None,
        *,
        identity: Mapping[str, Any] | None = None,
        reset_optimizer: bool = False,
    ) -> None:
        self._setup, self._display, self._stop = setup, display, stop
        self._train = setup.recipe.train
        self._sizes = Sizes(setup, display.note)
        self._updater = Updater(setup, self._sizes.micro_batch)
        self._bad_batches, self._watch = BadBatches(setup, display.note), Watch(setup)
        self._collections = Collections(setup, self._updater.own, self._sizes)
        self._identity = identity
        self._checkpoints = setup.folder / "checkpoints"
        self._done = self._saved = 0
        self._whole = True  # false while an update, the writing down of results, or a save is half done
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._evaluations: list[dict[str, Any]] = []
        lines: Mapping[str, int] = {}
        if checkpoint is not None:
            self._restore(checkpoint, reset_optimizer)
            lines = checkpoint.state["lines"]
        self._metrics = json_lines(setup.folder / "metrics.jsonl", lines.get("metrics.jsonl", 0))
        self._samples = json_lines(setup.folder / "samples.jsonl", lines.get("samples.jsonl", 0))
        named = self._train.trackers if world().is_main else ()
        self._trackers = [self._metrics, *trackers(setup.folder, named, self._done, display.note)]
        world().main_does(self._tidy)

    def _tidy(self) -> None:
        tidy(self._checkpoints)
        set_aside(self._checkpoints, after=self._done)

    def run(self) -> list[dict[str, Any]]:
        """Train to the last step; return the evaluations, the first one of the untrained student.

        Raises:
            DivergedError: a loss or gradient was not finite.
            InputError: `train.keep_best` names no metric of the evaluation.
            Stopped: the run was told to stop, or a file or a disk failed it; it has saved.
        """
        try:
            self._go_on()
        except Abandoned:
            self._leave("")
        except OSError as error:
            self._leave(f"{error}; ")
        except (DivergedError, InputError):
            self._keep_last_good()
            raise
        finally:
            for tracker in (*self._trackers, self._samples):
                tracker.close()
            if self._setup.servers is not None:
                self._setup.servers.close()
        return self._evaluations

    def _go_on(self) -> None:
        self._evaluate_if_due()
        while self._done < self._setup.steps:
            metrics = self.step(self._done)
            self._whole = False
            self._done += 1
            if self._done % self._train.log_every == 0 or self._done == self._setup.steps:
                self._log(metrics)
            self._whole = True
            self._display.step(self._done, metrics)
            self._heed_alarms()
            self._evaluate_if_due()
            self._save_if_due()

    def _heed_alarms(self) -> None:
        for text in self._watch.news:
            self._display.note(f"alarm: {text}")
        if self._watch.news and self._train.alarms == "stop" and self._done < self._setup.steps:
            raise DivergedError(
                f"stopped by an alarm at step {self._done}: {self._watch.news[0]}. The step is saved, and the same "
                "command goes on from it until the alarm gets worse; docs/health.md says more"
            )

    def _evaluate_if_due(self) -> None:
        every, done = self._setup.recipe.evaluation.every, self._done
        due = done in (0, self._setup.steps) or (every and done % every == 0)
        if due and all(evaluation["step"] != done for evaluation in self._evaluations):
            self._evaluate()

    def _save_if_due(self) -> None:
        every = self._train.save_every
        if self._done == self._setup.steps or (every and self._done % every == 0):
            self._save()

    def _keep_last_good(self) -> None:
        """Save as of the last finished step, unless that is done or something is half done."""
        if self._whole and self._done > self._saved:
            self._save()

    def _leave(self, cause: str) -> NoReturn:
        """Save what is finished, and leave."""
        self._keep_last_good()
        if self._done == 0:
            self._stop.leave(f"{cause}stopped before the first step; nothing is lost: the same command begins again")
        if self._saved == 0:
            self._stop.leave(f"{cause}nothing was saved yet; the same command begins again")
        self._stop.leave(
            f"{cause}saved at step {self._saved} of {self._setup.steps}; the same command goes on from here"
        )

    def step(self, step: int) -> dict[str, Any]:
        """Make one optimiser step (counted from 0): sample, update; return its metrics. `run` makes them all."""
        torch.manual_seed(int(generator(self._setup.recipe.seed, "dropout", step).integers(2**62)))
        self._seconds.clear()
        teacher = self._setup.teacher
        with self._timed("sampling"), self._updater.autocast(), self._stop.abandonable():
            rollout = self._collections.batch(step)
        before = teacher.seconds if teacher else 0.0
        with self._timed("update"), self._stop.abandonable():
            sums = self._update(rollout, step)
        self._seconds["teacher"] = (teacher.seconds if teacher else 0.0) - before
        self._seconds["update"] -= self._seconds["teacher"]
        metrics = self._metrics_of(rollout, sums, step)
        with self._updater.autocast():
            return metrics | self._watch.look(rollout, metrics, step)

    def _update(self, rollout: Rollout, step: int) -> Mapping[str, float]:
        try:
            return self._updater.step(rollout, step, self._commit)
        except (StepRefused, DoesNotFitError) as error:
            self._whole = True  # whatever was applied of the step is undone
            if isinstance(error, DoesNotFitError):
                raise
            self._stop.commit()
            return self._bad_batches.take(error, rollout, step)

    def _commit(self) -> None:
        """The update is about to change weights: from here on the step is finished, whatever comes."""
        if self._whole:  # the first of the step's phases
            self._stop.commit()
            self._whole = False

    def _metrics_of(self, rollout: Rollout, sums: Mapping[str, float], step: int) -> dict[str, Any]:
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
            **self._bad_batches.metrics(),
            "learning_rate": learning_rate(self._train, step, self._setup.steps),
            "epoch": self._setup.order.epoch(step + 1, self._train.batch_size) / inner_epochs,
            "tokens": positions,
            "response_length": sum(lengths) / len(lengths),
            "ended": ended / len(lengths),
            "student_text": written / len(rollout),
            **self._staleness(step, written),
            "seconds": dict(self._seconds),
        }

    def _staleness(self, step: int, written: int) -> dict[str, int]:
        """Optimiser steps that the student has made since the weights that wrote the text, where servers have them."""
        servers = self._setup.servers
        if servers is None or not written:
            return {}
        return {"rollout_staleness": servers.behind + self._collections.age(step)}

    def _evaluate(self) -> None:
        validation = self._setup.texts.validation
        if validation is None:
            return
        with self._timed("evaluation"), self._updater.autocast(), self._stop.abandonable():
            result = self._sizes.evaluation.fitting(
                lambda size: self._evaluated(validation, size), largest=len(validation), least=1
            )
        metrics = {name: measurement.as_dict() for name, measurement in result.metrics.items()}
        check_rule(self._train.keep_best, metrics)
        self._whole = False
        self._evaluations.append({"step": self._done, "metrics": metrics})
        self._log({"evaluation": metrics})
        self._collections.observe({name: m.value for name, m in result.metrics.items()})
        self._display.evaluation(self._done, result.metrics)
        for sample in result.samples:
            self._samples.log(self._done, sample)
        self._whole = True

    def _evaluated(self, validation: Examples, batch_size: int) -> Result:
        config = self._setup.recipe.evaluation
        decoding = replace(config.decoding, batch_size=batch_size)
        tokens = self._sizes.micro_batch.value * batch_size // config.decoding.batch_size
        with mode_kept(self._setup.student.network):
            return evaluate(
                self._setup.student,
                self._setup.teacher,
                validation.kept,
                replace(config, decoding=decoding),
                self._setup.tokenizer,
                micro_batch_tokens=tokens,
                seed=self._setup.recipe.seed,
                vocabulary=self._setup.vocabulary,
                critics=self._updater.own,
                on_progress=self._display.busy,
            )

    def _log(self, metrics: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(self._done, metrics)

    def _save(self) -> None:
        if self._saved == self._done:
            return
        self._display.busy("saving", 0, 1)
        self._whole = False
        optimizer = {
            name: state_tensors(module, self._updater.optimizers[name])
            for name, module in self._updater.modules.items()
        }
        own = {name: module.state_dict() for name, module in self._updater.own.items()}
        size = checkpoint_bytes(self._setup.student.model)
        contents = Contents(partial(write_student, self._setup), optimizer, own, self._state(), size)
        best = world().main_does(
            lambda: best_step(self._train.keep_best, self._evaluations, [*steps_kept(self._checkpoints), self._done])
        )
        save_checkpoint(self._checkpoints, self._done, contents, self._train.keep_checkpoints, best)
        self._whole, self._saved = True, self._done

    def _state(self) -> dict[str, Any]:
        return {
            "step": self._done,
            "steps": self._setup.steps,
            "identity": self._identity,
            "evaluations": self._evaluations,
            "lines": {"metrics.jsonl": self._metrics.bytes(), "samples.jsonl": self._samples.bytes()},
            **self._collections.state(self._done),
            "sizes": self._sizes.state(),
            "skipped": self._bad_batches.skipped,
            "health": self._watch.state(),
        }

    def _restore(self, checkpoint: Checkpoint, reset_optimizer: bool) -> None:
        state = checkpoint.state
        if not reset_optimizer:
            for name, module in self._updater.modules.items():
                load_state_tensors(module, self._updater.optimizers[name], checkpoint.optimizer(name))
        for name, module in self._updater.own.items():
            try:
                load_whole(module, checkpoint.module(name))
            except RuntimeError as error:  # torch's, of names or shapes
                raise InputError(
                    f"the {name} of {checkpoint.folder} does not fit this recipe ({error}); undo what was allowed to "
                    "change, or name another output"
                ) from error
        self._done = self._saved = checkpoint.step
        self._evaluations = state["evaluations"]
        self._collections.restore(state)
        self._sizes.restore(state["sizes"])
        self._bad_batches.skipped = state["skipped"]
        self._watch.restore(state["health"])

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self._display.phase(phase)
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start
