"""A comparison as text: for the terminal, Markdown, LaTeX and JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tutelage.reports.compare import Cell, Column, Comparison, Pair, Table

Format = Literal["table", "markdown", "json", "latex"]
ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}
LEVEL = 0.05
"""p-values below it are marked."""


def rendered(comparison: Comparison, style: Format) -> str:
    """A comparison as text that ends in a line break.

    Args:
        comparison: from `comparison`.
        style: `table` for a terminal, `markdown`, `latex` (needs the package booktabs), or `json`.
    """
    if style == "json":
        return json.dumps(asdict(comparison), indent=1, ensure_ascii=False) + "\n"
    write = {"table": _terminal, "markdown": _markdown, "latex": _latex}[style]
    return "\n".join(write(table) for table in comparison.tables)


def number(value: float, unit: str = "") -> str:
    """A value as tables show it: percentages with one digit, others with three that count.

    >>> number(12.345, "%"), number(0.12345), number(1234.5), number(float("nan"))
    ('12.3', '0.123', '1234', '–')
    """
    if value != value:
        return "–"
    if unit == "%":
        return f"{value:.1f}".replace("-", "−")
    digits = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:#.3g}"
    return digits.replace("-", "−")


def heading(column: Column) -> str:
    """A metric with its unit, and an arrow towards what is better."""
    unit = f", {column.unit}" if column.unit else ""
    return f"{column.name}{unit}{ARROWS[column.better]}"


def marks(table: Table, cell: Cell) -> str:
    """`†` for worse than the baseline, `*` for a difference from it that chance does not explain."""
    significant = cell.p_corrected is not None and cell.p_corrected < LEVEL
    return ("†" if cell.worse_than_baseline else "") + ("*" if significant else "")


def legend(table: Table, best: str = "Bold", second: str = "underlined") -> str:
    """What the marks of a table mean."""
    text = f"In brackets: 95 % bootstrap intervals over items. {best}: best; {second}: second best."
    if table.baseline is not None:
        text += f" †: worse than {table.baseline}."
    if table.pairs:
        text += (
            f" p-values of paired permutation tests on the same items, two-sided, corrected by Holm over the "
            f"{len(table.pairs)} tests of this table."
        )
        text += f" *: differs from {table.baseline} with p < {LEVEL}." if table.baseline is not None else ""
    return text


def difference_text(pair: Pair, unit: str) -> str:
    """A difference with its interval and p-value.

    >>> from tutelage.reports.significance import Difference
    >>> difference_text(Pair("a", "b", "m", Difference(1.5, 0.5, 2.5, 0.01, 9), 0.03), "%")
    '+1.5 (+0.5 to +2.5), p 0.03'
    """
    ends = [f"{'+' if end >= 0 else ''}{number(end, unit)}" for end in (
        pair.difference.value, pair.difference.low, pair.difference.high)]  # fmt: skip
    p = f"{pair.p_corrected:.2g}" if pair.p_corrected >= 1e-4 else "< 0.0001"
    return f"{ends[0]} ({ends[1]} to {ends[2]}), p {p}"


def _interval(cell: Cell, unit: str) -> str:
    return f" ({number(cell.low, unit)}–{number(cell.high, unit)})" if cell.low == cell.low else ""


def _pairs(table: Table) -> list[tuple[str, str, Callable[[Column], str]]]:
    """The tested pairs in the order of the table, each with what stands below a column."""
    both = dict.fromkeys((pair.first, pair.second) for pair in table.pairs)

    def below(first: str, second: str) -> Callable[[Column], str]:
        found = {p.metric: p for p in table.pairs if (p.first, p.second) == (first, second)}
        return lambda column: difference_text(found[column.name], column.unit) if column.name in found else "–"

    return [(first, second, below(first, second)) for first, second in both]


def _terminal(table: Table) -> str:
    endless, screen = Console(width=10_000), Console(highlight=False)
    values = _values(table, turned=False)
    if endless.measure(values).maximum > screen.width:
        values = _values(table, turned=True)
    parts: list[RichTable | Text] = [values]
    if table.pairs:
        parts.append(_differences(table))
    width = max(screen.width, *(endless.measure(part).maximum for part in parts))
    wide = Console(highlight=False, width=width)
    with wide.capture() as capture:
        for part in parts:
            wide.print(part)
    with screen.capture() as below:
        screen.print(Text(legend(table), style="dim"))
    return f"{capture.get()}\n{below.get()}"


def _values(table: Table, *, turned: bool) -> RichTable:
    """Models down and metrics across; or turned, where that is too wide for the screen."""
    title = Text(f"{table.task}: {table.description}", style="italic")
    shown = RichTable("", title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in table.rows if turned else map(heading, table.columns):
        shown.add_column(name, justify="right")
    if turned:
        for column in table.columns:
            shown.add_row(heading(column), *(_styled(table, row, column) for row in table.rows))
    else:
        for row in table.rows:
            shown.add_row(row, *(_styled(table, row, column) for column in table.columns))
    return shown


def _differences(table: Table) -> RichTable:
    shown = RichTable("", "", title="Differences on the same items", title_justify="left", box=None)
    shown.add_column("", justify="right")
    for first, second, below in _pairs(table):
        for column in table.columns:
            if (difference := below(column)) != "–":
                shown.add_row(f"  {first} − {second}", column.name, difference)
    return shown


def _styled(table: Table, row: str, column: Column) -> Text:
    cell = table.cells[row].get(column.name)
    if cell is None:
        return Text("–", style="dim")
    style = "bold" if cell.best else "underline" if cell.second else "red" if cell.worse_than_baseline else ""
    return Text.assemble(
        (number(cell.value, column.unit), style), (_interval(cell, column.unit), "dim"), marks(table, cell)
    )


def _markdown(table: Table) -> str:
    def shown(row: str, column: Column) -> str:
        cell = table.cells[row].get(column.name)
        if cell is None:
            return "–"
        value = number(cell.value, column.unit)
        value = f"**{value}**" if cell.best else f"<u>{value}</u>" if cell.second else value
        return f"{value}{_interval(cell, column.unit)}{marks(table, cell)}"

    lines = [f"### {table.task}", "", table.description, ""]
    lines += grid(
        ["", *map(heading, table.columns)],
        [[row, *(shown(row, column) for column in table.columns)] for row in table.rows],
    )
    if table.pairs:
        lines += ["", "Differences on the same items:", ""]
        lines += grid(
            ["", *(column.name for column in table.columns)],
            [[f"{a} − {b}", *(below(column) for column in table.columns)] for a, b, below in _pairs(table)],
        )
    return "\n".join([*lines, "", legend(table), ""])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table.

    >>> grid(["", "a|b"], [["x", "1"]])
    ['|  | a\\\\|b |', '|---|---|', '| x | 1 |']
    """
    body = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in body]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$",
          "↓": r"$\downarrow$", "–": "--", "−": "$-$", "†": r"$^{\dagger}$", "*": r"$^{*}$", "<": "$<$",
          ">": "$>$"}  # fmt: skip


def escaped(text: str) -> str:
    """A text as LaTeX source.

    >>> print(escaped("loss_per_item, %"))
    loss\\_per\\_item, \\%
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex(table: Table) -> str:
    def shown(row: str, column: Column) -> str:
        cell = table.cells[row].get(column.name)
        if cell is None:
            return "--"
        value = escaped(number(cell.value, column.unit))
        value = rf"\textbf{{{value}}}" if cell.best else rf"\underline{{{value}}}" if cell.second else value
        return value + rf"{{\scriptsize {escaped(_interval(cell, column.unit))}}}" + escaped(marks(table, cell))

    lines = [rf"% {table.task}; needs \usepackage{{booktabs}}", r"\begin{table}", r"\centering"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(["", *(escaped(heading(column)) for column in table.columns)]) + r" \\", r"\midrule"]
    lines += [
        " & ".join([escaped(row), *(shown(row, column) for column in table.columns)]) + r" \\" for row in table.rows
    ]
    caption = f"{table.description}. {legend(table)}".replace("..", ".")
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escaped(caption)}}}", r"\end{table}", ""]
    return "\n".join(lines)
