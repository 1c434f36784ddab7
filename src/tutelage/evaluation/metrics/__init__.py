"""The metrics, one family a file: each a frozen dataclass, which is both its settings and the way it measures."""

from typing import Annotated, get_args

from pydantic import Field

from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.metrics.calibration import Calibration
from tutelage.evaluation.metrics.choices import Choices
from tutelage.evaluation.metrics.divergences import Divergences
from tutelage.evaluation.metrics.diversity import Diversity
from tutelage.evaluation.metrics.draft import Draft
from tutelage.evaluation.metrics.entailment import Entailment
from tutelage.evaluation.metrics.exact_answer import ExactAnswer
from tutelage.evaluation.metrics.exposure_bias import ExposureBias
from tutelage.evaluation.metrics.judge import Judge, JudgePairwise
from tutelage.evaluation.metrics.length import Length, RougeByLength
from tutelage.evaluation.metrics.lm_eval import LmEval
from tutelage.evaluation.metrics.loss import Loss
from tutelage.evaluation.metrics.moments import Moments
from tutelage.evaluation.metrics.risks import Risks
from tutelage.evaluation.metrics.rouge import Rouge
from tutelage.evaluation.metrics.translation import Bleu, Chrf

AnyMetric = Annotated[
    Bleu
    | Calibration
    | Choices
    | Chrf
    | Divergences
    | Diversity
    | Draft
    | Entailment
    | ExactAnswer
    | ExposureBias
    | Judge
    | JudgePairwise
    | Length
    | LmEval
    | Loss
    | Moments
    | Risks
    | Rouge
    | RougeByLength,
    Field(discriminator="name"),
]
"""Any metric, told apart by its `name`."""

METRICS: dict[str, type[Metric]] = {
    kind.__dataclass_fields__["name"].default: kind for kind in get_args(get_args(AnyMetric)[0])
}
"""Each metric by its name."""
