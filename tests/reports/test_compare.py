"""Hand-made tables: what is best, second, worse than fine-tuning, tested, and refused."""

import json
import subprocess
import sys

import pytest
from tests.reports.records import PROTOCOL, mean_of, write_record

from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.evaluation.intervals import Measurement
from tutelage.evaluation.score import Score
from tutelage.reports.compare import comparison
from tutelage.reports.render import rendered

HIGH, MIDDLE, LOW = [90, 80, 85, 95] * 3, [60, 55, 65, 60] * 3, [10, 20, 15, 5] * 3


@pytest.fixture
def runs(tmp_path):
    values = {"sft": MIDDLE, "gkd": HIGH, "broken": LOW}
    for name, figures in values.items():
        losses = [3 - value / 100 for value in figures]
        scores = {
            "rouge_l": mean_of(*figures),
            "loss": mean_of(*losses, better="lower", unit="nats a token"),
            "length": mean_of(*figures, better="neither", unit="tokens"),
        }
        write_record(tmp_path / name, scores, method="sft" if name == "sft" else "gkd")
    return [tmp_path / name for name in values]


def test_best_second_and_worse_than_the_fine_tuned_run(runs):
    (table,) = comparison(runs).tables
    assert (table.task, table.rows, table.baseline) == ("dolly", ("sft", "gkd", "broken"), "sft")
    for metric in ("rouge_l", "loss"):
        cells = {row: table.cells[row][metric] for row in table.rows}
        assert [row for row, cell in cells.items() if cell.best] == ["gkd"]
        assert [row for row, cell in cells.items() if cell.second] == ["sft"]
        assert [row for row, cell in cells.items() if cell.worse_than_baseline] == ["broken"]
    assert not any(cell.best or cell.second or cell.worse_than_baseline for cell in (
        table.cells[row]["length"] for row in table.rows))  # fmt: skip
    cell = table.cells["gkd"]["rouge_l"]
    assert (cell.value, cell.n) == (87.5, 12)
    assert cell.difference == pytest.approx(27.5)
    assert cell.difference_low is not None
    assert 20 < cell.difference_low < 27.5
    assert table.cells["sft"]["rouge_l"].p_value is None


def test_p_values_are_corrected_over_the_table(runs):
    (table,) = comparison(runs).tables
    assert len(table.pairs) == 6
    assert {round(pair.difference.p_value, 9) for pair in table.pairs} == {round(2 / 2**12, 9)}  # every sign alike
    assert {round(pair.p_corrected, 9) for pair in table.pairs} == {round(6 * 2 / 2**12, 9)}


def test_every_pair(runs):
    (table,) = comparison(runs, pairs=True).tables
    assert {(pair.first, pair.second) for pair in table.pairs} == {
        ("gkd", "sft"), ("broken", "sft"), ("broken", "gkd")}  # fmt: skip
    assert table.cells["gkd"]["rouge_l"].difference == pytest.approx(27.5)


def test_baseline_by_name_or_folder_turns_the_differences(runs):
    for baseline in ("gkd", runs[1], str(runs[1])):
        (table,) = comparison(runs, baseline=baseline).tables
        assert table.baseline == "gkd"
        assert table.cells["sft"]["rouge_l"].difference == pytest.approx(-27.5)
    with pytest.raises(InputError, match="--baseline else is none of the runs: sft, gkd, broken"):
        comparison(runs, baseline="else")


def test_names_can_be_given(runs):
    assert comparison([f"ours={runs[1]}", runs[0]]).tables[0].rows == ("ours", "sft")
    with pytest.raises(InputError, match="two runs are called sft"):
        comparison([runs[0], runs[0]])


def test_protocols_that_differ_are_refused(runs, tmp_path):
    other = {**PROTOCOL, "decoding": {"strategy": "sample", "top_k": 0}}
    odd = write_record(tmp_path / "odd", {"rouge_l": mean_of(*HIGH)}, protocol=other)
    with pytest.raises(
        InputError,
        match=r"rouge_l of sft and of odd were measured by different protocols \(decoding.strategy: greedy and sample",
    ):
        comparison([*runs, odd])


def test_items_that_differ_are_refused(runs, tmp_path):
    odd = write_record(tmp_path / "odd", {"rouge_l": mean_of(*HIGH[:-1])})
    with pytest.raises(InputError, match="dolly: rouge_l of odd and of sft: the items differ: 0 are in the first"):
        comparison([*runs, odd])


def test_what_is_not_there_is_said(runs, tmp_path):
    with pytest.raises(InputError, match="holds no evaluation"):
        comparison([tmp_path / "nothing"])
    with pytest.raises(InputError, match="no run was evaluated on task 'else'; on record: dolly"):
        comparison(runs, tasks=["else"])


def test_numbers_without_items_are_shown_and_not_tested(tmp_path):
    for name, value in (("a", 10.0), ("b", 20.0)):
        score = Score({}, "%", "higher", known=Measurement(value, value - 1, value + 1, 5))
        write_record(tmp_path / name, {"distinct_4": score}, method="sft" if name == "a" else None)
    (table,) = comparison([tmp_path / "a", tmp_path / "b"]).tables
    assert table.pairs == ()
    assert table.cells["b"]["distinct_4"].best


def test_markdown(runs):
    text = rendered(comparison(runs[:2]), "markdown")
    assert "| gkd | **87.5** (84.2–90.8)*" in text
    assert "| sft | <u>60.0</u>" in text
    assert "| gkd − sft | +27.5 (+24.2 to +30.8), p 0.0015 |" in text
    assert "corrected by Holm over the 3 tests of this table" in text


def test_latex_and_json_and_terminal(runs):
    found = comparison(runs)
    latex = rendered(found, "latex")
    assert r"rouge\_l, \% $\uparrow$" in latex
    assert r"\textbf{87.5}" in latex
    assert r"$^{\dagger}$" in latex
    cell = json.loads(rendered(found, "json"))["tables"][0]["cells"]["broken"]["rouge_l"]
    assert cell["worse_than_baseline"] is True
    terminal = rendered(found, "table")
    assert "87.5" in terminal
    assert "†: worse than sft" in " ".join(terminal.split())


def test_a_terminal_that_is_too_narrow_has_models_across(runs, monkeypatch):
    found = comparison(runs)
    heads = {}
    for width in ("60", "200"):
        monkeypatch.setenv("COLUMNS", width)
        heads[width] = next(
            line for line in rendered(found, "table").splitlines() if "sft" in line or "rouge_l" in line
        )
    assert heads["60"].split() == ["sft", "gkd", "broken"]
    assert "rouge_l, % ↑" in heads["200"]


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("gkd.rouge_l < sft.rouge_l", 0),
        ("broken.rouge_l < sft.rouge_l", 1),
        ("broken.rouge_l significantly < sft.rouge_l", 1),
        ("dolly.broken.rouge_l < dolly.sft.rouge_l significantly", 1),
        ("gkd.rouge_l >= 87.5", 1),
        ("gkd.rouge_l significantly > 87", 0),
        ("gkd.rouge_l significantly > 80", 1),
        ("gkd.loss > 2.5", 0),
        ("gkd.loss <= sft.loss", 1),
        ("gkd.loss", 2),
        ("gkd.blue < 3", 2),
        ("1 < 2 significantly", 2),
        ("gkd.rouge_l < gkd.loss significantly", 0),
        ("gkd.rouge_l > gkd.loss significantly", 2),
    ],
)
def test_fail_if(runs, capsys, condition, status):
    assert main(["compare", *map(str, runs), "--fail-if", condition]) == status
    said = capsys.readouterr()
    if status == 1:
        assert "--fail-if: " in said.err
        assert "87.5" in said.out
    if status == 2:
        assert condition in said.err


def test_a_metric_of_two_tasks_needs_the_task(tmp_path, capsys):
    for task in ("dolly", "vicuna"):
        write_record(tmp_path / "a", {"rouge_l": mean_of(*HIGH)}, task=task)
    assert main(["compare", str(tmp_path / "a"), "--fail-if", "a.rouge_l < 3"]) == 2
    assert "may be dolly.a.rouge_l or vicuna.a.rouge_l" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), "--fail-if", "a.rouge_l < 99", "--tasks", "vicuna"]) == 1


def test_it_can_write_a_file_and_needs_no_torch(runs, tmp_path):
    code = (
        "import sys; from tutelage.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; raise SystemExit(status)"
    )
    words = ["compare", *map(str, runs), "--format", "markdown", "--out", str(tmp_path / "new" / "table.md")]
    assert subprocess.run([sys.executable, "-c", code, *words], check=False).returncode == 0
    assert (tmp_path / "new" / "table.md").read_text(encoding="utf-8").startswith("### dolly")
