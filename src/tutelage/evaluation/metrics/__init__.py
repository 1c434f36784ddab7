"""The metrics, one family a file: each a frozen dataclass, which is both its settings and the way it measures."""

from typing import Annotated, get_args

from pydantic import Field

from tutelage.evaluation.metrics.base import Metric
from tutelage.evaluation.metrics.exact_answer import ExactAnswer
from tutelage.evaluation.metrics.loss import Loss
from tutelage.evaluation.metrics.rouge import Rouge

AnyMetric = Annotated[Loss | ExactAnswer | Rouge, Field(discriminator="name")]
"""Any metric, told apart by its `name`."""

METRICS: dict[str, type[Metric]] = {
    kind.__dataclass_fields__["name"].default: kind for kind in get_args(get_args(AnyMetric)[0])
}
"""Each metric by its name."""
