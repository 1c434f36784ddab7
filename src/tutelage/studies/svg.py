"""Figures as SVG, which pages of code forges show: lines, points and heat maps, and nothing else."""

import math
from collections.abc import Callable, Sequence
from html import escape

from tutelage.studies.figures import Figure, Heatmap, Series

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#17becf", "#bcbd22")
"""Of Okabe and Ito, which those who see few colours can tell apart, and four more."""
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 360, 70, 40, 52
LETTER, LINE = 7, 16  # the width of a letter at most, and the height of a line of the legend
Place = Callable[[float], float]


def svg(figure: Figure | Heatmap) -> str:
    """Draw a figure."""
    return _heatmap(figure) if isinstance(figure, Heatmap) else _lines(figure)


def _document(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _lines(figure: Figure) -> str:
    names = [series.name for series in figure.series]
    height = max(HEIGHT, TOP + BOTTOM + LINE * len(names))
    parts = [_text((LEFT + WIDTH) / 2, 20, figure.title, more='font-weight="bold"')]
    shown = [series for series in figure.series if len(series.x)]
    if not shown:
        return _document(WIDTH, HEIGHT, [*parts, _text(WIDTH / 2, HEIGHT / 2, "no data yet")])
    across = _scale([x for s in shown for x in s.x], figure.log_x, LEFT, WIDTH - 20)
    up = _scale([y for s in shown for y in (*s.y, *(s.low or ()), *(s.high or ()))], figure.log_y, height - BOTTOM, TOP)
    parts += _axes(figure, across, up, height)
    colour = -1
    for number, series in enumerate(shown):
        colour += not series.fitted
        parts += _series(series, across[0], up[0], COLOURS[colour % len(COLOURS)], figure.points)
        parts += _key(series, TOP + 8 + LINE * number, COLOURS[colour % len(COLOURS)])
    return _document(WIDTH + 25 + LETTER * max(map(len, names)), height, parts)


Scale = tuple[Place, list[float]]


def _scale(values: Sequence[float], log: bool, begin: float, end: float) -> Scale:
    """Where a value stands between two ends, and the values to mark."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    log = log and max(finite) > min(finite)
    warp: Place = math.log10 if log else float
    low, high = warp(min(finite)), warp(max(finite))
    reach = (high - low) or abs(high) or 1.0
    low, high = low - 0.04 * reach, high + 0.04 * reach

    def place(value: float) -> float:
        inside = warp(value) if not log or value > 0 else low
        return begin + (end - begin) * (inside - low) / (high - low)

    return place, _log_ticks(low, high) if log else _ticks(low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two others, 4 to 9 of them.

    >>> _ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * at, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between two powers; 1 alone where there are many."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    found = [f * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    return [value for value in found if low <= math.log10(value) <= high]


def _axes(figure: Figure, across: Scale, up: Scale, height: float) -> list[str]:
    base, right = height - BOTTOM, WIDTH - 20
    parts = [f'<path d="M{LEFT} {TOP}V{base}H{right}" fill="none" stroke="black"/>']
    for value in across[1]:
        x = across[0](value)
        parts += [f'<path d="M{x:.1f} {base}v4" stroke="black"/>', _text(x, base + 17, f"{value:g}")]
    for value in up[1]:
        y = up[0](value)
        parts += [f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#dddddd"/>', _text(LEFT - 6, y + 4, f"{value:g}", "end")]
    middle = (TOP + base) / 2
    parts.append(_text((LEFT + right) / 2, height - 12, figure.x_title))
    parts.append(_text(16, middle, figure.y_title, more=f'transform="rotate(-90 16 {middle:.1f})"'))
    return parts


def _series(series: Series, across: Place, up: Place, colour: str, points: bool) -> list[str]:
    places = [(across(x), up(y)) for x, y in zip(series.x, series.y, strict=True)]
    if not series.joined:
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}" fill-opacity="0.6"/>' for x, y in places]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashes = ' stroke-dasharray="5 4"' if series.fitted else ' stroke-opacity="0.4"' if points else ""
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{1 if points else 1.8}"{dashes}/>']
    if series.fitted:
        return parts
    if series.low and series.high and len(places) <= 40:
        ends = zip(places, series.low, series.high, strict=True)
        bars = "".join(f"M{x:.1f} {up(low):.1f}V{up(high):.1f}" for (x, _), low, high in ends)
        parts.append(f'<path d="{bars}" stroke="{colour}" stroke-opacity="0.6"/>')
    if len(places) <= 40:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if points else 2.6}" fill="{colour}"/>' for x, y in places]
    named = zip(places, series.labels, strict=False)
    return [*parts, *(_label(x, y, label, colour) for (x, y), label in named if label)]


def _label(x: float, y: float, label: str, colour: str) -> str:
    """A word at a point, on the side where there is room."""
    fits = x + LETTER * len(label) < WIDTH - 20
    side, anchor = (6, "start") if fits else (-6, "end")
    return _text(x + side, y - 5, label, anchor, f'font-size="9" fill="{colour}"')


def _key(series: Series, y: float, colour: str) -> list[str]:
    dashes = ' stroke-dasharray="5 4"' if series.fitted else ""
    return [
        f'<path d="M{WIDTH - 8} {y}h18" stroke="{colour}" stroke-width="2"{dashes}/>',
        _text(WIDTH + 15, y + 4, series.name, "start"),
    ]


def _heatmap(figure: Heatmap) -> str:
    cell, row, left = 104, 44, 30 + LETTER * max((len(y) for y in figure.y), default=0)
    width, height = left + cell * max(1, len(figure.x)) + 20, TOP + 40 + row * max(1, len(figure.y)) + 30
    parts = [_text(width / 2, 20, figure.title, more='font-weight="bold"')]
    known = [value for values in figure.values for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for at, x in enumerate(figure.x):
        parts.append(_text(left + cell * (at + 0.5), TOP + 12, x))
    for line, (y, values, texts) in enumerate(zip(figure.y, figure.values, figure.texts, strict=True)):
        top = TOP + 20 + row * line
        parts.append(_text(left - 8, top + row / 2 + 4, y, "end"))
        for at, (value, text) in enumerate(zip(values, texts, strict=True)):
            share = 0.0 if value is None else (value - low) / ((high - low) or 1.0)
            fill = "#eeeeee" if value is None else _shade(share)
            ink = "white" if value is not None and share > 0.6 else "black"
            place = f'x="{left + cell * at}" y="{top}" width="{cell - 2}" height="{row - 2}"'
            figure_text, _, ends = text.partition(" ")
            parts += [f'<rect {place} fill="{fill}"/>',
                      _text(left + cell * (at + 0.5), top + (19 if ends else 26), figure_text, more=f'fill="{ink}"'),
                      _text(left + cell * (at + 0.5), top + 34, ends, more=f'fill="{ink}" font-size="9"')]  # fmt: skip
    parts.append(_text((left + width) / 2, height - 10, f"{figure.x_title} across, {figure.y_title} down"))
    return _document(width, height, parts)


def _shade(share: float) -> str:
    """From near white to dark blue."""
    light, dark = (237, 243, 250), (8, 64, 129)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(light, dark, strict=True))
