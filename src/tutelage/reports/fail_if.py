"""`--fail-if`: conditions on what was measured, for checks that have to stop on a bad student."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from tutelage.errors import InputError
from tutelage.reports.compare import Cell, Comparison, Table, paired_test
from tutelage.reports.render import LEVEL, number

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FORM = re.compile(
    r"\s*(?P<left>\S+)\s+(?P<before>significantly\s+)?(?P<sign><=|>=|<|>)\s*(?P<right>\S+)(?P<after>\s+significantly)?\s*"
)


@dataclass(frozen=True)
class _Operand:
    text: str
    value: float
    place: tuple[Table, str, str] | None = None
    """Table, row and column; `None` for a plain number."""

    @property
    def cell(self) -> Cell | None:
        return None if self.place is None else self.place[0].cells[self.place[1]][self.place[2]]

    def __str__(self) -> str:
        unit = "" if self.place is None else next(
            column.unit for column in self.place[0].columns if column.name == self.place[2]
        )  # fmt: skip
        return self.text if self.place is None else f"{self.text} ({number(self.value, unit)})"


def holds(condition: str, comparison: Comparison) -> str | None:
    """Say in a sentence that a condition holds; `None` where it does not.

    Args:
        condition: `name.metric`, or `task.name.metric` where several tasks have that metric, then `<`, `<=`, `>` or
            `>=`, then another such or a number. With `significantly` in front of the sign or at the end, the paired
            difference must have p < 0.05 as well; against a number, its whole 95 % interval must lie beyond it.
        comparison: what was measured.

    Raises:
        InputError: the condition cannot be read, or names what was not measured.
    """
    match = _FORM.fullmatch(condition)
    if match is None:
        raise InputError(
            f"--fail-if '{condition}': expected NAME.METRIC < NAME.METRIC or a number, with blanks around the sign, "
            "such as 'gkd.rouge_l significantly < sft.rouge_l'"
        )
    left, right = (_operand(match[side], comparison, condition) for side in ("left", "right"))
    sign = match["sign"]
    if not _OPERATORS[sign](left.value, right.value):
        return None
    if not (match["before"] or match["after"]):
        return f"{left} {sign} {right}"
    clear = _significant(left, right, comparison, condition)
    return f"{left} significantly {sign} {right}" if clear else None


def _operand(text: str, comparison: Comparison, condition: str) -> _Operand:
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return _Operand(text, float(text))
    places = [
        (table, row, column)
        for table in comparison.tables
        for row in table.rows
        for column in table.cells[row]
        if text in (f"{row}.{column}", f"{table.task}.{row}.{column}")
    ]
    if len(places) > 1:
        first, second = (f"{table.task}.{row}.{column}" for table, row, column in places[:2])
        raise InputError(f"--fail-if '{condition}': '{text}' may be {first} or {second}; write it with the task")
    if not places:
        known = [f"{row}.{column}" for table in comparison.tables for row in table.rows for column in table.cells[row]]
        raise InputError(f"--fail-if '{condition}': no '{text}' was measured; known: {', '.join(dict.fromkeys(known))}")
    (place,) = places
    return _Operand(text, place[0].cells[place[1]][place[2]].value, place)


def _significant(left: _Operand, right: _Operand, comparison: Comparison, condition: str) -> bool:
    if left.place and right.place:
        (task, row, metric), (other_task, other, other_metric) = left.place, right.place
        if task.task != other_task.task or metric != other_metric or row == other:
            raise InputError(
                f"--fail-if '{condition}': only one metric of two runs on one task can be tested; leave out "
                "'significantly'"
            )
        return paired_test(comparison, task.task, row, other, metric).p_value < LEVEL
    measured, reference = (left, right) if left.place else (right, left)
    cell = measured.cell
    if cell is None:
        raise InputError(f"--fail-if '{condition}': two plain numbers have nothing to test")
    return not cell.low <= reference.value <= cell.high
