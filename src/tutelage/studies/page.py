"""The results of a study on disk: JSON, a Markdown page, an SVG a figure, and one HTML page to move around in."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from tutelage.sealing import write_whole
from tutelage.studies.figures import Figure, Heatmap, Outcome, TextTable
from tutelage.studies.gather import Entry
from tutelage.studies.study import Study
from tutelage.studies.svg import COLOURS, svg

FOLDER = "results"


def write_results(study: Study, entries: Sequence[Entry], outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write results.json, results.md, results.html and the figures into the folder of the runs; return the page."""
    where = folder / FOLDER / study.name
    where.mkdir(parents=True, exist_ok=True)
    texts = {f"{drawn.name}.svg": svg(drawn) for drawn in outcomes if not isinstance(drawn, TextTable)}
    texts |= {"results.json": _json(study, entries, outcomes), "results.html": _html(study, outcomes)}
    texts["results.md"] = _markdown(study, entries, outcomes)
    for name, text in texts.items():
        write_whole(where / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return where / "results.md"


def _json(study: Study, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> str:
    runs = [
        {
            "name": entry.name, "kind": entry.kind, "settings": dict(entry.settings), "seed": entry.seed,
            "folder": str(entry.folder), "status": entry.status,
            "values": {
                f"{task}.{name}": {key: found[key] for key in ("value", "low", "high", "n")}
                for task, record in entry.records.items()
                for name, found in record.metrics.items()
            },
        }
        for entry in entries
    ]  # fmt: skip
    shown = [{"kind": type(outcome).__name__.lower(), **asdict(outcome)} for outcome in outcomes]
    return json.dumps({"study": study.name, "title": study.title, "outcomes": shown, "runs": runs}, indent=1)


def _markdown(study: Study, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> str:
    lines = [f"# {study.title}", "", " ".join(study.paper.split())]
    for outcome in outcomes:
        lines += ["", f"## {outcome.title}", "", *outcome.markdown()]
    failed = [f"{entry.name}, seed {entry.seed}" for entry in entries if entry.status == "diverged"]
    missing = [f"{entry.name}, seed {entry.seed}" for entry in entries if entry.status == "missing"]
    lines += ["", f"Diverged: {'; '.join(failed)}."] if failed else []
    lines += ["", f"Not run yet: {'; '.join(missing)}."] if missing else []
    return "\n".join([*lines, ""])


def _html(study: Study, outcomes: Sequence[Outcome]) -> str:
    from plotly.offline import get_plotlyjs

    body = [f"<h1>{escape(study.title)}</h1>", f"<p>{escape(study.paper)}</p>"]
    for number, outcome in enumerate(outcomes):
        body.append(f"<h2>{escape(outcome.title)}</h2>")
        if isinstance(outcome, TextTable):
            rows = ["".join(f"<td>{_shown(cell)}</td>" for cell in row) for row in (outcome.head, *outcome.rows)]
            body.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        else:
            drawn = json.dumps(plotly_figure(outcome)).replace("</", "<\\/")
            body.append(f'<div id="figure-{number}"></div><script>Plotly.newPlot("figure-{number}", {drawn})</script>')
        body += [f"<p>{escape(note)}</p>" for note in outcome.notes]
    style = "body{font-family:sans-serif;max-width:60rem;margin:2rem auto}td{padding:.2rem .8rem .2rem 0}"
    head = f'<meta charset="utf-8"><title>{escape(study.title)}</title><style>{style}</style>'
    script = f"<script>{get_plotlyjs()}</script>" if any(not isinstance(o, TextTable) for o in outcomes) else ""
    return f"<!doctype html><html><head>{head}{script}</head><body>{''.join(body)}</body></html>\n"


def _shown(cell: str) -> str:
    """A cell of a table, whose Markdown has bold and underlined figures alone."""
    text = escape(cell).replace("&lt;u&gt;", "<u>").replace("&lt;/u&gt;", "</u>")
    bold, stars, rest = text.removeprefix("**").partition("**")
    return f"<b>{bold}</b>{rest}" if text.startswith("**") and stars else text


def plotly_figure(outcome: Figure | Heatmap) -> dict[str, Any]:
    """A figure in the form that plotly draws: `data` and `layout`."""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": outcome.x_title}},
        "yaxis": {"title": {"text": outcome.y_title}},
    }
    if isinstance(outcome, Heatmap):
        layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
        layout["xaxis"] |= {"type": "category"}
        trace = {
            "type": "heatmap",
            "x": list(outcome.x),
            "y": list(outcome.y),
            "z": [list(row) for row in outcome.values],
        }
        return {"data": [{**trace, "text": [list(row) for row in outcome.texts], "texttemplate": "%{text}",
                          "colorscale": "Blues"}], "layout": layout}  # fmt: skip
    layout["xaxis"] |= {"type": "log"} if outcome.log_x else {}
    layout["yaxis"] |= {"type": "log"} if outcome.log_y else {}
    data, colour = [], -1
    for series in outcome.series:
        colour += not series.fitted
        trace: dict[str, Any] = {"type": "scatter", "name": series.name, "x": list(series.x), "y": list(series.y)}
        trace["line"] = {"color": COLOURS[colour % len(COLOURS)], "dash": "dash" if series.fitted else "solid"}
        lines = "lines" if series.fitted or len(series.x) > 40 else "lines+markers"
        trace["mode"] = lines if series.joined else "markers"
        if series.low and series.high:
            above = [high - y for high, y in zip(series.high, series.y, strict=True)]
            below = [y - low for low, y in zip(series.low, series.y, strict=True)]
            trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        if series.labels:
            trace["text"] = list(series.labels)
        data.append(trace)
    return {"data": data, "layout": layout}
