"""Tables and figures of hand-made records."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.reports.records import mean_of, write_record

from tutelage.errors import InputError
from tutelage.evaluation.record import load_records
from tutelage.recipe import checked
from tutelage.studies.collecting import CurveOf, HeatmapOf, LineOf, ScatterOf, TableOf
from tutelage.studies.figures import Figure, Heatmap, Series, TextTable
from tutelage.studies.fits import power_law
from tutelage.studies.gather import Entry, outcome
from tutelage.studies.page import plotly_figure
from tutelage.studies.svg import svg


def entry(
    folder: Path, name: str, seed: int, settings: dict, kind="run", status="finished", curve=None, **values
) -> Entry:
    place = folder / f"{seed}-{name}"
    if status == "finished":
        scores = {key: mean_of(value, better="lower" if key == "loss" else "higher", unit="%" if key != "loss" else "")
                  for key, value in values.items()}  # fmt: skip
        curves = {"bias": {**curve, "x_title": "length", "y_title": "error"}} if curve else {}
        write_record(place, scores, task="few", curves=curves)
    return Entry(name, kind, {"run": name, **settings}, seed, place, status, load_records(place))


@pytest.fixture
def entries(tmp_path):
    found = []
    for seed in (0, 1):
        found.append(entry(tmp_path, "start", seed, {}, kind="start", accuracy=10.0 + seed, loss=2.0))
        for rate in (1, 10, 100):
            for kind in ("a", "b"):
                accuracy = 20.0 + 10 * seed + rate / 10 + 5 * (kind == "b")
                settings = {"rate": rate, "kind": kind}
                found.append(entry(tmp_path, f"{kind}{rate}", seed, settings, accuracy=accuracy, loss=1 / rate))
    return found


def made(output, entries, **keys):
    return outcome(checked(output, {"name": "it", "title": "It", **keys}, "test"), entries)


def test_starts_that_were_not_measured_have_no_row(entries, tmp_path):
    entries.append(entry(tmp_path, "other", 0, {}, kind="start"))
    entries.append(entry(tmp_path, "later", 0, {}, status="missing"))
    rows = [row[0] for row in made(TableOf, entries, kind="table", metrics=["few.accuracy"]).rows]
    assert "start" in rows
    assert "later" in rows
    assert "other" not in rows


def test_metrics_are_named_in_words_and_the_task_where_it_tells_them_apart(entries):
    head = made(TableOf, entries, kind="table", metrics=["few.rouge_l", "many.rouge_l", "few.loss_per_item"]).head
    assert head == ["", "ROUGE-L (few)", "ROUGE-L (many)", "loss per item"]


def test_table(entries, tmp_path):
    entries.append(entry(tmp_path, "broken", 0, {}, status="diverged"))
    before = entry(tmp_path, "half", 0, {}, accuracy=95.0)  # what was measured before a run diverged does not count
    entries.append(replace(before, status="diverged"))
    entries.append(entry(tmp_path, "half", 1, {}, accuracy=5.0))
    table = made(TableOf, entries, kind="table", metrics=["few.accuracy", "few.loss"], baseline="start")
    assert isinstance(table, TextTable)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["start"] == ["10.5 (10.0–11.0)", "2.00 (2.00–2.00)"]
    assert rows["b100"] == ["**40.0** (35.0–45.0)", "**0.0100** (0.0100–0.0100)"]
    assert rows["a100"] == ["<u>35.0</u> (30.0–40.0)", "**0.0100** (0.0100–0.0100)"]
    assert rows["broken"] == ["failed", "failed"]
    assert rows["half"] == ["5.0 † (1 failed)", "failed"]
    assert table.head == ["", "accuracy, % ↑", "loss ↓"]


def test_heatmap_is_the_gain_over_the_start_of_the_same_seed(entries):
    keys = {"kind": "heatmap", "x": "rate", "y": "kind", "metric": "few.accuracy", "relative_to": "start"}
    heatmap = made(HeatmapOf, entries, **keys)
    assert isinstance(heatmap, Heatmap)
    assert (heatmap.x, heatmap.y) == (["1", "10", "100"], ["a", "b"])
    wanted = [[20.1 - 10 + 4.5, 21 - 10 + 4.5, 30 - 10 + 4.5], [25.1 - 10 + 4.5, 26 - 10 + 4.5, 35 - 10 + 4.5]]
    assert heatmap.values == [pytest.approx(row) for row in wanted]
    with pytest.raises(InputError, match="no run 'nothing' in this study"):
        made(HeatmapOf, entries, **{**keys, "relative_to": "nothing"})


def test_line_has_means_and_ranges(entries):
    line = made(LineOf, entries, kind="line", x="rate", metric="few.accuracy", series="kind", log_x=True)
    assert isinstance(line, Figure)
    assert [series.name for series in line.series] == ["a", "b"]
    a = line.series[0]
    assert (a.x, a.y, a.low, a.high) == ([1, 10, 100], [25.1, 26.0, 35.0], [20.1, 21.0, 30.0], [30.1, 31.0, 40.0])
    only = made(LineOf, entries, kind="line", x="rate", metric="few.accuracy", only={"kind": ["b"]})
    assert isinstance(only, Figure)
    assert only.series[0].y == pytest.approx([30.1, 31.0, 40.0])


def test_an_axis_of_words_cannot_be_drawn_over(entries):
    with pytest.raises(InputError, match="'a' on axis 'kind' is no number"):
        made(LineOf, entries, kind="line", x="kind", metric="few.accuracy")


def test_scatter_goes_along_an_axis(entries):
    scatter = made(ScatterOf, entries, kind="scatter", x="few.loss", y="few.accuracy", series="kind", along="rate",
                   only={"kind": ["a", "b"]})  # fmt: skip
    assert isinstance(scatter, Figure)
    assert scatter.series[0].labels == ["1", "10", "100"]
    assert scatter.series[0].x == pytest.approx([1, 0.1, 0.01])
    assert scatter.series[0].y == pytest.approx([25.1, 26.0, 35.0])


def test_curves_are_averaged_over_seeds(tmp_path):
    curves = {0: {"x": [1, 2], "y": [1.0, 3.0]}, 1: {"x": [1, 2], "y": [3.0, 5.0]}}
    entries = [
        entry(tmp_path, name, seed, {}, curve={"x": curve["x"], "y": [y + more for y in curve["y"]]}, loss=1.0)
        for seed, curve in curves.items()
        for name, more in (("sft", 0.0), ("gkd", 10.0))
    ]
    keys = {"kind": "curve", "task": "few", "curve": "bias"}
    found = made(CurveOf, entries, **keys)
    assert isinstance(found, Figure)
    assert (found.x_title, found.y_title) == ("length", "error")
    assert [(s.name, s.x, s.y, s.low) for s in found.series] == [
        ("sft", [1, 2], [2.0, 4.0], [1.0, 3.0]), ("gkd", [1, 2], [12.0, 14.0], [11.0, 13.0])]  # fmt: skip
    gained = made(CurveOf, entries, **keys, relative_to="sft")
    assert isinstance(gained, Figure)
    assert [series.y for series in gained.series] == [[0.0, 0.0], [10.0, 10.0]]
    assert [series.low for series in gained.series] == [[0.0, 0.0], [10.0, 10.0]], "each seed is taken by itself"
    together = made(CurveOf, entries, **keys, edges=[10.0])
    assert isinstance(together, Figure)
    assert (together.series[0].x, together.series[0].y) == ([1.5], [3.0])


def test_what_was_logged_is_averaged_over_a_window(tmp_path):
    one = entry(tmp_path, "sft", 0, {}, loss=1.0)
    lines = [{"step": 0, "evaluation": {"moment_on": {"value": 4.0}}}]
    lines += [{"step": step, "loss": float(step)} for step in range(1, 6)]
    lines += [{"step": 5, "evaluation": {"moment_on": {"value": 2.0}}}]
    (one.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    smooth = made(CurveOf, [one], kind="curve", logged="loss", window=2)
    assert isinstance(smooth, Figure)
    assert (smooth.series[0].x, smooth.series[0].y) == ([2, 4], [1.5, 3.5])
    held_out = made(CurveOf, [one], kind="curve", logged="evaluation.moment_on")
    assert isinstance(held_out, Figure)
    assert (held_out.series[0].x, held_out.series[0].y) == ([0, 5], [4.0, 2.0])


def test_power_law_is_found_again_with_its_error():
    draws = np.random.default_rng(3)
    sizes = np.geomspace(1e4, 1e8, 9)
    errors, off = [], []
    for _ in range(60):
        losses = (3e5 / sizes) ** 0.3 + 1.2 + draws.normal(0, 0.01, sizes.size)
        law = power_law(sizes.tolist(), losses.tolist())
        assert law is not None
        errors.append(law.exponent_error)
        off.append(law.exponent - 0.3)
    assert np.std(off) == pytest.approx(np.mean(errors), rel=0.3)
    assert abs(np.mean(off)) < 0.01


def test_what_does_not_fall_has_no_power_law():
    assert power_law([1, 2, 4, 8], [1, 2, 3, 4]) is None
    assert power_law([1, 2, 4], [3, 2, 1]) is None


def test_lines_with_a_fit(tmp_path):
    entries = [entry(tmp_path, f"r{x}", 0, {"rate": x}, loss=(10 / x) ** 0.5 + 0.3) for x in (1, 2, 4, 8, 16)]
    line = made(LineOf, entries, kind="line", x="rate", metric="few.loss", fit="power-law")
    assert isinstance(line, Figure)
    assert [series.fitted for series in line.series] == [False, True]
    assert "α = 0.500" in line.notes[1]


FIGURE = Figure("f", "A < B & C", "x", "y", [
    Series("one", [1, 10, 100], [0.1, 0.2, 0.3], [0.05, 0.1, 0.2], [0.2, 0.3, 0.4], ["a", "b", "c"]),
    Series("fit", [1, 100], [0.1, 0.3], fitted=True)], log_x=True)  # fmt: skip
HEATMAP = Heatmap("h", "Heat", "x", "y", ["1", "2"], ["a"], [[0.5, None]], [["0.5 (0.4–0.6)", "–"]])


@pytest.mark.parametrize("figure", [FIGURE, HEATMAP, Figure("e", "Empty", "x", "y", [])])
def test_svg_is_well_formed(figure):
    root = ElementTree.fromstring(svg(figure))
    assert figure.title in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_svg_places_points_on_its_scale():
    """Three powers of ten are equally far apart on a logarithmic axis, and higher values stand higher."""
    points = [tuple(map(float, p)) for p in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg(FIGURE))]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
    assert points[0][1] > points[1][1] > points[2][1]


def test_plotly_takes_the_figures():
    import plotly.graph_objects as go

    for figure in (FIGURE, HEATMAP):
        go.Figure(plotly_figure(figure))
