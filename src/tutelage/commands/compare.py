"""`tutelage compare`: runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import InputError, TutelageError
from tutelage.reports.compare import comparison
from tutelage.reports.fail_if import holds
from tutelage.reports.render import Format, rendered
from tutelage.sealing import write_whole


def compare(
    folders: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    baseline: str | None = None,
    pairs: bool = False,
    fail_if: Sequence[str] = (),
    style: Format = "table",
    out: str | None = None,
) -> None:
    """Print what is on record of several runs, side by side, or write it into a file.

    Args:
        folders: of runs or models, `name=FOLDER` for another name in the table.
        tasks: which tasks; all by default.
        baseline: run to test against; by default the one whose method is sft.
        pairs: test each pair of runs instead.
        fail_if: conditions such as `gkd.rouge_l < sft.rouge_l`.
        style: of the tables.
        out: file to write instead of printing.

    Raises:
        InputError: numbers do not belong together, or a condition cannot be read.
        TutelageError: one of the conditions holds.
    """
    found = comparison(folders, tasks=tasks, baseline=baseline, pairs=pairs)
    held = [holds(condition, found) for condition in fail_if]
    text = rendered(found, style)
    if out is None:
        print(text, end="")
    else:
        _write(Path(out), text)
        print(f"comparison in {out}")
    true = [sentence for sentence in held if sentence is not None]
    if true:
        raise TutelageError(f"--fail-if: {'; '.join(true)}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); name another file") from None
