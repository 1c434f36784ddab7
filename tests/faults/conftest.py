"""The uninterrupted runs that the others are compared with, made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.faults.runs import run, write_recipe

Whole = Callable[[str], Path]


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Whole:
    """Takes a method; returns the folder of its uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def of(method: str) -> Path:
        run(write_recipe(folder / method, method, "whole"), folder / "log")
        return folder / method / "whole"

    return of
