"""`tutelage report`: the page of a run, or of several side by side."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import InputError
from tutelage.reports.comparison_report import read_runs, write_comparison
from tutelage.reports.page import write_page
from tutelage.reports.run_report import FILE, page_of

COMPARISON = "comparison.html"


def report(folders: Sequence[str], *, teacher: str | None = None, out: str | None = None, show: bool = False) -> Path:
    """Write the report of a run, or one page that compares several; return the file.

    Args:
        folders: of runs, finished or going on; `name=FOLDER` gives one another name.
        teacher: a model that answers the runs' samples beside the students, for runs that had no teacher in memory.
        out: the file; by default `report.html` in the run's folder, or `comparison.html` here.
        show: open it in a browser.

    Raises:
        InputError: a folder holds no run, two runs have one name, or the file cannot be written.
    """
    runs = read_runs(folders)
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two runs are called {twice}; give them names: first={twice}")
    if teacher is not None:
        from tutelage.commands.second_look import look_again  # loads torch

        for run in runs:
            look_again(run.folder, teacher)
        runs = read_runs(folders)
    path = Path(out or (runs[0].folder / FILE if len(runs) == 1 else COMPARISON))
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            write_page(path, page_of(runs[0]))
        else:
            write_comparison(runs, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file with --out") from None
    print(f"report in {path}")
    if show:
        webbrowser.open(path.resolve().as_uri())
    return path
