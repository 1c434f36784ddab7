"""Pages: whole in one file, safe whatever models wrote, and honest about runs that lack something."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import mapping

from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.evaluation.record import Record, save_record
from tutelage.evaluation.score import Score
from tutelage.recipe import recipe_of
from tutelage.reports.comparison_report import read_runs, write_comparison
from tutelage.reports.curves import MOST_POINTS, Plot, smoothed, thinned, training_plots
from tutelage.reports.page import (
    DARK_SCALE,
    LIGHT_SCALE,
    Answer,
    Cell,
    Page,
    Section,
    Shown,
    Table,
    hash_of,
    json_in_html,
    rendered,
)
from tutelage.reports.run_files import read_run
from tutelage.reports.run_record import read_record
from tutelage.reports.run_report import write_report
from tutelage.reports.token_view import Choice, Token
from tutelage.reports.wording import what_differs, what_happened
from tutelage.training.run import train

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\" ' onmouseover='alert(3)' & {{ 7 * 7 }} <!-- ",
    "שלום עולם \u202e مرحبا",
    "👩‍👩‍👧‍👦 🇪🇺",
    "nul\0 escape\x1b[31m bell\x07 lone\ud83d line\u2028end",
    "wordwithoutanend" * 200,
)
EVALUATION = {"metrics": ["loss", "exact_answer"], "decoding": {"max_new_tokens": 5}, "samples": 3}
TOP = (Choice("</script>", 0.75), Choice("\ud83d", 0.25))


class Outline(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.scripts = [("", {})], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1][0] == "script":
            self.scripts.append(data)
        elif self.tags[-1][0] != "style":
            self.text += data

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))


def token(text, **changes):
    figures = {"reverse_kl": 0.5, "forward_kl": math.inf, "total_variation": 0.3, "student_logp": -1.0}
    return Token(text, text, **{**figures, "teacher_logp": -math.inf, **changes}, student_top=TOP, teacher_top=TOP)


def hostile_page():
    samples = [Shown(text, [Answer(text, text), Answer("after", text, [token(text), token("")])]) for text in HOSTILE]
    tables = [Table((text, "b"), [[Cell(text), Cell(text, text)]], text, text) for text in HOSTILE]
    plots = [Plot(text, [{"name": text, "x": [1, 2], "y": [None, 2.0]}], text, text, note=text) for text in HOSTILE]
    section = Section(HOSTILE[0], HOSTILE[0], tables, plots, samples, [(text, text) for text in HOSTILE])
    return Page(HOSTILE[0], HOSTILE[1], HOSTILE[2], tables, [section])


def test_nothing_that_models_write_becomes_markup():
    html = rendered(hostile_page())
    html.encode("utf-8")
    assert "\0" not in html
    assert "\x1b" not in html
    outline = Outline(html)
    tags = {tag for tag, _ in outline.tags if not tag.startswith("/")}
    assert "img" not in tags
    assert [a for tag, a in outline.tags for name in a if name.startswith("on")] == []
    scripts = [attributes for tag, attributes in outline.tags if tag == "script"]
    assert [a.get("type") for a in scripts] == [None, "application/json", "application/octet-stream"]
    for text in HOSTILE[:3]:
        assert text in outline.text
    assert "nul␀ escape␛[31m bell␇ lone\ufffd" in outline.text


def test_the_embedded_json_gives_back_what_was_put_in():
    html = rendered(hostile_page())
    data = json.loads(Outline(html).scripts[1])
    assert data["plots"][0]["traces"][0]["name"] == HOSTILE[0]
    assert data["views"][0]["student_top"][0][0] == ["</script>", 0.75]
    assert data["views"][0]["forward_kl"] == [None, None]
    assert json_in_html({"a": "</script>\u2028\u2029&<!--"}).isascii()


def test_the_policy_knows_the_scripts_by_their_hashes_and_lets_no_request_leave():
    html = rendered(hostile_page())
    outline = Outline(html)
    policy = next(a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert hash_of(outline.scripts[0]) in policy
    assert len(re.findall("sha256-", policy)) == 2
    assert not re.search(r"https?:|unsafe-eval|script-src[^;]*unsafe", policy)
    outside = [a for _, a in outline.tags for name in ("src", "href") if a.get(name) and not a[name].startswith("#")]
    assert outside == []


def test_a_page_without_plots_does_not_carry_the_library():
    page = hostile_page()
    bare = replace(page, sections=[replace(page.sections[0], plots=[])])
    assert len(rendered(bare)) < 200_000 < len(rendered(page))


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes():
    css = Path("src/tutelage/reports/templates/page.css").read_text()
    dark, light = re.split(r"\{%- endmacro %\}", css, maxsplit=1)
    return [
        (dict(re.findall(r"--([\w-]+): (#\w{6})", part)), scale)
        for part, scale in ((light, LIGHT_SCALE), (dark, DARK_SCALE))
    ]


@pytest.mark.parametrize(("colours", "scale"), themes(), ids=["light", "dark"])
def test_text_and_curves_stand_out_in_both_themes(colours, scale):
    for ground in ("paper", "sheet"):
        for text in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for series in range(1, 7):
            assert contrast(colours[f"series-{series}"], colours[ground]) >= 3
    assert all(contrast(colours["token-ink"], colour) >= 4.5 for colour in scale)
    steps = [contrast(one, other) for one, other in pairwise(scale)]
    assert max(steps) / min(steps) < 1.2


def test_long_curves_keep_their_extremes():
    x = np.arange(100_000.0)
    y = np.sin(x / 999)
    y[[31_007, 77_003]] = 9.0, -9.0
    y[500:900] = np.nan
    kept_x, kept_y = thinned(x, y)
    assert len(kept_x) <= MOST_POINTS
    assert (kept_x[0], kept_x[-1]) == (0, 99_999)
    assert {31_007.0, 77_003.0} <= set(kept_x)
    assert np.all(np.diff(kept_x) > 0)
    assert np.nanmax(kept_y) == 9.0


def test_the_running_mean_is_the_mean_around_each_step():
    y = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0])
    expected = [np.nanmean(y[max(0, at - 2) : at + 3]) for at in range(6)]
    np.testing.assert_allclose(smoothed(y), expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method in ("gkd", "sft"):
        train(recipe_of(mapping(folder, method, evaluation=EVALUATION)), report=lambda line: None)
    return {method: folder / f"run-llama-{method}" for method in ("gkd", "sft")}


def test_a_run_ends_with_its_report(runs):
    record = read_record(runs["gkd"])
    assert record is not None
    assert record.note == ""
    assert [len(sample.tokens) > 0 for sample in record.samples] == [True] * 3
    last = read_run(runs["gkd"]).answers_at(6)
    for sample in record.samples:
        assert last[sample.prompt] == sample.student
        assert "".join(token.text for token in sample.tokens).strip() == sample.student
    assert (record.rows["training"].kept, record.rows["training"].total) == (30, 30)
    html = (runs["gkd"] / "report.html").read_text(encoding="utf-8")
    outline = Outline(html)
    assert "GKD taught a" in outline.text
    for heading in ("Teacher", "Student before", "Student after", "Reference", "config.yaml"):
        assert heading in outline.text
    titles = [a["aria-label"] for _, a in outline.tags if a.get("class") == "canvas"]
    assert [t.split(" by ")[0].split(".")[0] for t in titles][:4] == [
        "Loss", "Divergence from the teacher", "Length of responses", "Gradient norm"]  # fmt: skip
    assert any(title.startswith("Where the time goes") for title in titles)


def test_without_a_teacher_a_sentence_stands_for_what_is_missing(runs):
    html = (runs["sft"] / "report.html").read_text(encoding="utf-8")
    assert "The run had no teacher in memory" in html
    assert "Student after" in html
    assert 'data-view="' not in html


def test_the_same_command_writes_a_report_that_is_missing(runs):
    path = runs["sft"] / "report.html"
    before = path.read_text(encoding="utf-8")
    path.unlink()
    said = []
    train(recipe_of(mapping(runs["sft"].parent, "sft", evaluation=EVALUATION)), report=said.append)
    assert path.read_text(encoding="utf-8") == before
    assert said[-1] == f"report in {path}"


def test_several_runs_make_one_page(runs, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert main(["report", f"first={runs['gkd']}", str(runs["sft"]), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"report in {out}\n"
    text = Outline(out.read_text(encoding="utf-8")).text
    assert "Two runs" in text
    for expected in ("first", "run-llama-sft", "method.name", "Where the recipes differ"):
        assert expected in text


def test_records_of_evaluations_are_tables_and_plots(runs, tmp_path):
    scores = {"accuracy": Score.of({"a": 1.0, "b": 0.0}, unit="%", better="higher")}
    curve = {"x": [0.1, 0.9], "y": [0.2, 0.8], "low": [0.1, 0.7], "high": [0.3, 0.9],
             "x_title": "confidence", "y_title": "accuracy"}  # fmt: skip
    for folder in runs.values():
        metrics = {"accuracy": {**scores["accuracy"].as_dict(), "protocol": "p"}}
        model = {"name": "m", "path": "", "identity": "1", "parameters": 3}
        found = Record("toy", "A toy.", model, None, metrics, {"p": {}}, {"reliability": curve})
        save_record(folder, found, scores)
    outline = Outline(rendered_report(runs["gkd"], tmp_path))
    assert "toy: A toy." in outline.text
    assert "Evaluation" in outline.text
    both = write_comparison(read_runs([str(folder) for folder in runs.values()]), tmp_path / "both.html")
    data = json.loads(Outline(both.read_text(encoding="utf-8")).scripts[1])
    assert [trace["name"] for trace in data["plots"][-1]["traces"] if trace.get("showlegend") is not False] == [
        "run-llama-gkd", "run-llama-sft"]  # fmt: skip
    for folder in runs.values():
        for path in (folder / "evaluations").iterdir():
            path.unlink()


def rendered_report(folder, tmp_path):
    return write_report(folder, tmp_path / "one.html").read_text(encoding="utf-8")


def test_a_run_that_goes_on_has_a_report_too(tmp_path):
    folder = tmp_path / "going"
    folder.mkdir()
    (folder / "config.yaml").write_text("method: {name: gkd}\ntrain: {steps: 200}\n")
    lines = [{"step": step, "loss": 2.0 / step, "seconds": {"update": 1.0}} for step in range(1, 91)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 91, "lo')
    run = read_run(folder)
    assert what_happened(run) == (
        "GKD is teaching the student and is at step 90 of 200: the training loss went from 2 to 0.0222."
    )
    assert [plot.title for plot in training_plots([run])] == ["Loss"]
    assert "is at step 90" in rendered_report(folder, tmp_path)


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    folder = tmp_path / "gap"
    folder.mkdir()
    (folder / "config.yaml").write_text("method: {name: gkd}\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": "NaN"}\n')
    assert training_plots([read_run(folder)])[0].traces[0]["y"] == [2.0, None]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((0.16, 0.13, 0.20), (0.98, 0.96, 0.99), "rose from 16.0\xa0% (13.0–20.0) to 98.0\xa0% (96.0–99.0)."),
        ((0.0, 0.0, 0.49), (0.0, 0.0, 0.49), "stayed at 0.0\xa0% (0.0–49.0)."),
        ((0.30, 0.20, 0.40), (0.25, 0.2, 0.3), "fell from 30.0\xa0% (20.0–40.0) to 25.0\xa0% (20.0–30.0); the 95 %"),
    ],
)
def test_the_sentence_says_what_was_measured(runs, before, after, words):
    run = read_run(runs["gkd"])
    evaluations = tuple(
        {"step": step, "metrics": {"exact_answer": dict(zip(("value", "low", "high", "n"), (*found, 9), strict=True))}}
        for step, found in ((0, before), (6, after))
    )
    assert words in what_happened(replace(run, evaluations=evaluations))


def test_the_sentence_of_several_runs_names_the_best(runs):
    found = read_runs([str(folder) for folder in runs.values()])

    def with_loss(run, value):
        metrics = {"loss": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}}
        return replace(run, evaluations=({"step": 6, "metrics": metrics},))

    pair = [with_loss(found[0], 1.0), with_loss(found[1], 2.0)]
    assert what_differs(pair).startswith("Two runs: run-llama-gkd ends with the lowest loss, 1 (0.9–1.1);")


@pytest.mark.parametrize(
    "line", ["null", "[]", "3", '{"loss": 1}', '{"step": null}', '{"step": 1, "evaluation": {"loss": 3}}',
             '{"step": 1, "seconds": 4}', '{"step": 1, "seconds": {"update": []}}', "[" * 3000]
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "config.yaml").write_text("method: {name: sft}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n' + line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is no line of a run's figures"):
        read_run(tmp_path)


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run (no config.yaml)" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("method: {name: sft}\n")
    (tmp_path / "metrics.jsonl").write_text("not json\n{}\n")
    with pytest.raises(InputError, match="is no line of a run's figures"):
        read_run(tmp_path)
