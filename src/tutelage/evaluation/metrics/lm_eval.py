"""Tasks of the lm-evaluation-harness, through its own interface."""

import copy
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count
from tutelage.evaluation.intervals import Measurement
from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.score import Better, Findings, Score

_BOOTSTRAPS = 1000
"""For the harness's own standard errors, of numbers that are no means over documents."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LmEval(Metric):
    """Numbers of the harness's tasks, as the harness computes them; use it for what is compared with published ones.

    Each is named `<task>_<metric>`, with the harness's filter behind it where there is one, and has the harness's own
    scale (accuracy from 0 to 1). Where it is a mean over documents these are its items; else its interval is 1.96
    standard errors of the harness to either side. The harness reads its own data (most from the hub), renders its
    own prompts and generates with transformers; the task's items are not looked at. Its version is part of the
    protocol: tasks change with it.

    Reference: Gao et al., lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).
    """

    name: Literal["lm_eval"] = "lm_eval"
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of tasks or groups, as `lm-eval ls tasks` lists them."""
    include_path: str | None = None
    """Folder with tasks of your own, as YAML in the harness's format."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before each question; by default the task's own number."""
    limit: Count | None = None
    """Only so many documents of each task, from the first; for trials."""
    chat_template: bool = False
    """Put the tokenizer's chat template around each prompt."""

    packages: ClassVar = ("lm_eval",)

    @model_validator(mode="after")
    def _is_installed(self) -> "LmEval":
        if find_spec("lm_eval") is None:
            raise ValueError("metric lm_eval needs the harness: pip install 'tutelage[lm-eval]'")
        return self

    def measure(self, subject) -> Findings:
        """Hand the loaded model to the harness."""
        model = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=subject.student.model,
            tokenizer=copy.deepcopy(subject.tokenizer),  # it sets a padding token and side of its own
            batch_size=subject.task.decoding.batch_size,
        )
        results = import_module("lm_eval").simple_evaluate(
            model=model,
            tasks=list(self.tasks),
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            apply_chat_template=self.chat_template,
            task_manager=import_module("lm_eval.tasks").TaskManager(include_path=self.include_path),
            bootstrap_iters=_BOOTSTRAPS,
            log_samples=True,
        )
        return Findings(dict(scores_of(results)))


def scores_of(results: Mapping[str, Any]) -> Iterator[tuple[str, Score]]:
    """Read the harness's results: each number of each task and group, with its documents where it is their mean.

    Args:
        results: what `simple_evaluate` returns, samples among it.
    """
    for task, numbers in results["results"].items():
        for key, value in numbers.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = f"{task}_{metric}" + ("" if kept == "none" else f"_{kept}")
            better = _better(results.get("higher_is_better", {}).get(task, {}).get(metric))
            samples = [row for row in results.get("samples", {}).get(task, ()) if row["filter"] == kept]
            rows = {f"{task}:{row['doc_id']}": row[metric] for row in samples if _is_number(row.get(metric))}
            if rows and len(rows) == len(samples) and abs(sum(rows.values()) / len(rows) - value) < 1e-9:
                yield name, Score.of({place: float(row) for place, row in rows.items()}, unit="", better=better)
                continue
            error = numbers.get(f"{metric}_stderr,{kept}")
            reach = 1.96 * error if _is_number(error) else float("nan")
            count = len(samples) or int(numbers.get("sample_len") or 0)
            yield name, Score({}, "", better, known=Measurement(value, value - reach, value + reach, count))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _better(higher: bool | None) -> Better:
    return "neither" if higher is None else "higher" if higher else "lower"
