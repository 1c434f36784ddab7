"""Recipes from damaged files and odd command lines: they are taken or refused, and never end in any other error."""

from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.mutations import LENGTHS, mutated, refusal_of

from tutelage.cli import parse
from tutelage.recipe import Recipe, dump_recipe, load_recipe, recipe_of
from tutelage.redaction import HIDDEN
from tutelage.safe_yaml import parse_yaml

SEEDS = [path.read_bytes() for path in sorted(Path("recipes").rglob("*.yaml"))]
"""The tests run from the root of the project."""
PIECES = [
    *(b"null", b"{}", b"[]", b"''", b".nan", b".inf", b"1e400", b"-1", b"0", b"true", b"~", b"\n", b"\t", b"- ", b": "),
    *(
        b"!!int x",
        b"!!bool 7",
        b"!!float",
        b"!!binary aa",
        b"!!set {a}",
        b"!!python/name:os.system",
        b"!x",
        b"&a",
        b"*a",
    ),
    *(b"<<: *a", b"? ", b"|\n", b">", b"%YAML 1.1\n---\n", b"---\n", b"2020-13-45", b"1:99:99", b"0x" + b"f" * 5000),
    *(b"[" * 2000, b"{a: " * 600, b"\xff", b"\xef\xbb\xbf", b"\0", b"\x07", b"#", b"@", b"`", b"\xed\xa0\x80"),
]
KEYS = [
    "seed",
    "output",
    "method.name",
    "method",
    "train.steps",
    "train",
    "data.columns",
    "student.from-config",
    "a..b",
    "a.",
]
VALUES = [
    "1",
    "null",
    "{}",
    "[1, {a: b}]",
    "{",
    "&a [*a]",
    "1e-5",
    ".nan",
    "gkd",
    "minillm",
    "'",
    "0x" + "f" * 4000,
    "",
]
WORDS = st.one_of(
    st.sampled_from([f"--{key}" for key in KEYS]),
    st.sampled_from([f"--{key}={value}" for key in KEYS for value in VALUES]),
    st.sampled_from(VALUES),
    st.text(max_size=12),
    st.text(max_size=12).map("--{}".format),
)


@LENGTHS
def test_recipes_are_taken_or_refused(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "recipe.yaml"

    @settings(max_examples=cases)
    @given(st.one_of(st.sampled_from(SEEDS), mutated(SEEDS, PIECES)), st.lists(WORDS, max_size=4))
    def only_our_errors(content: bytes, words: list[str]) -> None:
        path.write_bytes(content)
        taken: list[Recipe] = []
        refusal = refusal_of(lambda: taken.append(load_recipe(path, words)))
        assert taken or 0 < len((refusal or "").strip()) < 100_000
        for recipe in taken:
            dumped = dump_recipe(recipe)
            if HIDDEN not in dumped:  # what is written down runs again as it is
                assert recipe_of(parse_yaml(dumped, "config.yaml")) == recipe

    only_our_errors()


@LENGTHS
def test_command_lines_are_taken_or_refused(cases: int) -> None:
    @settings(max_examples=cases)
    @given(st.lists(WORDS, max_size=6))
    def only_usage_errors(words: list[str]) -> None:
        with suppress(SystemExit):  # argparse says what it expected, and leaves
            parse(["train", "recipe.yaml", *words])

    only_usage_errors()
