"""What the documentation says is true of the code: names, links, commands and code blocks."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch

import tutelage
from tutelage.cli import parse
from tutelage.methods import METHODS
from tutelage.training.identity import CHANGEABLE

PAGES = [*sorted(Path("docs").rglob("*.md")), *(Path(name) for name in ("CONTRIBUTING.md", "SECURITY.md"))]
"""The tests run from the root of the project."""
REFERENCE = Path("docs/reference.md")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced code blocks of a language, each with the number of the line it begins at."""
    text = text_of(page)
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in found]


def commands(page: Path) -> list[str]:
    """Every line of a code block, or piece of inline code, that calls the command with a verb."""
    lines = []
    for _, block in [*blocks(page, "bash"), *blocks(page, "console")]:
        joined = block.replace("\\\n", " ")
        lines += [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    lines += re.findall(r"`(tutelage (?:train|check|generate|demo) [^`]+)`", text_of(page))
    return [line for line in lines if line.startswith("tutelage ") and not re.search(r"…|RECIPE|METHOD", line)]


def status_of_parsing(words: list[str]) -> object:
    try:
        parse(words)
    except SystemExit as leaving:  # --help, --keys and --version answer and leave
        return leaving.code
    return 0


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code forges make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", tutelage.__all__)
def test_public_name_is_documented(name):
    assert inspect.getdoc(getattr(tutelage, name)), f"tutelage.{name} has no docstring"
    assert f"tutelage.{name}" in text_of(REFERENCE)


@pytest.mark.parametrize("name", METHODS)
def test_method_has_a_page_and_a_recipe(name):
    page = Path(f"docs/methods/{name}.md")
    assert f"recipes/{name}.yaml" in text_of(page)
    assert Path(f"recipes/{name}.yaml").exists()
    assert f"({name}.md)" in text_of(Path("docs/methods/README.md"))


@pytest.mark.parametrize("name", METHODS)
def test_method_page_lists_every_hyper_parameter(name):
    page = text_of(Path(f"docs/methods/{name}.md"))
    fields = [field for field in METHODS[name].__dataclass_fields__ if field != "name"]
    assert not [field for field in fields if f"| `{field}` |" not in page]


def test_keys_that_may_differ_when_a_run_goes_on_are_listed():
    page = text_of(Path("docs/resuming.md"))
    assert [key for key in CHANGEABLE if f"`{key}`" not in page] == []


def test_python_of_the_reference_runs():
    torch.manual_seed(0)
    namespace: dict = {}
    for line, block in blocks(REFERENCE, "python"):
        exec(compile("\n" * (line - 1) + block, str(REFERENCE), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_parse_and_name_recipes_that_exist(page):
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        assert status_of_parsing(words) == 0, f"{page}: {command}"
        for word in words:
            assert not word.startswith("recipes/") or Path(word).exists(), f"{page}: {command}"


def test_commands_are_found():
    assert len(commands(Path("docs/start.md"))) > 5
