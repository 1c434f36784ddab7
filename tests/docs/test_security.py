"""Every promise of SECURITY.md names a test, and that test is there."""

import re
from pathlib import Path

PAGE = Path("SECURITY.md")
PROMISES = PAGE.read_text(encoding="utf-8").partition("## What the code promises")[2].partition("\n## ")[0]


def test_every_promise_names_a_test_that_is_there():
    promises = PROMISES.split("\n- ")[1:]
    assert len(promises) >= 7
    for promise in promises:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert tests, f"this promise names no test: {promise}"
        for file, name in tests:
            assert f"def {name}(" in Path(file).read_text(encoding="utf-8"), f"{file} has no {name}"


def test_the_package_opens_no_pickles():
    """Nothing calls what reads them; the libraries are asked for safetensors by name."""
    for file in Path("src/tutelage").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert not re.search(r"\bimport (pickle|shelve|marshal|joblib|dill)\b|\btorch\.load\(", source), file
        assert not re.search(r"allow_pickle=True|use_safetensors\W+False", source), file
    assert 'options["use_safetensors"] = True' in Path("src/tutelage/models/loading.py").read_text(encoding="utf-8")
