"""Recipes that are wrong: B38 to B41 of the bad-input matrix, and YAML from people who mean harm.

A mistake that the recipe alone shows is told before any model is loaded, in one line each, with exit status 2.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tests.tiny import mapping

import tutelage
from tutelage import redaction
from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.models import adapters
from tutelage.models.sources import Source
from tutelage.recipe import dump_recipe, load_recipe, recipe_of
from tutelage.safe_yaml import LONGEST, parse_yaml
from tutelage.training.tracking import check_installed

VERBS = ("check", "train", "generate")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(mapping(tmp_path, "gkd")), encoding="utf-8")
    return path


def said(verb: str, path: Path, words: list[str], capsys) -> str:
    """What a verb says of a recipe with these overrides, which has to be refused."""
    more = ["--out", str(path.with_name("out.jsonl"))] if verb == "generate" else []
    assert main([verb, str(path), *words, *more]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_B38_unknown_keys_are_refused_with_the_nearest_known_one(recipe, capsys, verb):
    whole = yaml.safe_load(recipe.read_text())
    whole["train"]["learning_rat"] = 1
    recipe.write_text(yaml.safe_dump(whole))
    expected = f"{recipe}: unknown key 'train.learning_rat'; did you mean 'train.learning_rate'?"
    assert expected in said(verb, recipe, [], capsys)


WRONG = {
    "text for a number": (["--train.learning-rate", "fast"], "train.learning_rate must be a valid number"),
    "zero batch": (["--train.batch-size", "0"], "train.batch_size must be greater than or equal to 1 (got 0)"),
    "zero temperature": (["--method.temperature", "0"], "method.temperature must be greater than 0 (got 0)"),
    "share beyond 1": (["--method.student-fraction", "2"], "method.student_fraction must be less than or equal to 1"),
    "beta beyond 1": (["--method.divergence", "jsd(2)"], "beta of 'jsd' must lie strictly between 0 and 1 (got 2)"),
    "endless rate": (["--train.learning-rate", ".inf"], "train.learning_rate must be a finite number (got inf)"),
    "no number": (["--train.weight-decay", ".nan"], "train.weight_decay must be"),
    "half a step": (
        ["--train.steps", "2.5"],
        "train.steps must be a valid integer, got a number with a fractional part",
    ),
    "huge": (["--train.steps", "1e400"], "train.steps must be"),
    "no value": (["--train.steps"], "train.steps must be a number (got true); an option without a value is true"),
    "a truth": (["--train.learning-rate", "yes", "--seed", "4"], "train.learning_rate must be a number (got true)"),
    "a truth in a decoding": (
        ["--method.student-decoding", "{top_k: false}"],
        "method.student_decoding.top_k must be a number (got false)",
    ),
    "no such metric": (
        [
            *("--evaluation.metrics", "[loss]", "--evaluation.every", "2", "--train.save-every", "2"),
            *("--train.keep-best", "lowest los"),
        ],
        "train.keep_best is 'lowest los', but the evaluation has loss",
    ),
    "a list": (["--data.train", "[a, b]"], "data.train must be a valid string (got ['a', 'b'])"),
    "another choice": (["--data.on-bad-row", "ignore"], "data.on_bad_row must be 'stop' or 'skip' (got 'ignore')"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_B39_wrong_types_and_ranges_are_named_with_what_was_given(recipe, capsys, wrong):
    words, expected = WRONG[wrong]
    assert expected in said("train", recipe, words, capsys)


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", "1.0e-5", "1E-5"])
def test_B39_numbers_are_numbers_however_they_are_written(recipe, text):
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.01", f"learning_rate: {text}"))
    assert load_recipe(recipe).train.learning_rate == 1e-5


IMPOSSIBLE = {
    "nothing to evaluate on": (
        ["--evaluation.every", "2", "--data.validation", "null"],
        "evaluation.every is set, but there is nothing to evaluate on: add data.validation",
    ),
    "no teacher to agree with": (
        ["--method.name", "sft", "--teacher", "null"],
        "evaluation.metrics has 'agreement', which needs a teacher: add teacher.model",
    ),
    "no teacher to learn from": (["--teacher", "null"], "method 'gkd' needs a teacher: add teacher.model"),
    "no text": (["--method.name", "minillm", "--method.text-rows", "2"], "has a term on plain text: add data.text"),
    "two durations": (["--train.epochs", "1"], "give either steps or epochs"),
    "two sources": (["--student.from-config", "{model_type: llama}"], "give exactly one of model, from_config"),
    "no such device": (["--teacher.device", "cuda:63"], "teacher.device is 'cuda:63', but PyTorch sees"),
    "a type that cannot be trained in": (["--student.dtype", "float16"], "student.dtype is float16, whose range is"),
    "unpinned code": (["--student.trust-remote-code"], "trust_remote_code needs a pinned revision: the 40 hex"),
    "no such judge": (["--evaluation.answer", "no.such:thing"], "evaluation.answer: cannot find no.such:thing"),
}


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize("combination", IMPOSSIBLE)
def test_B40_impossible_combinations_are_found_before_any_model_is_loaded(
    recipe, capsys, monkeypatch, verb, combination
):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    words, expected = IMPOSSIBLE[combination]
    whole = yaml.safe_load(recipe.read_text())
    if "--teacher" in words:
        del whole["teacher"]
        words = words[: words.index("--teacher")]
    for name in {"sft", "minillm"} & {*IMPOSSIBLE[combination][0]}:
        whole["method"] = {"name": name}
    recipe.write_text(yaml.safe_dump(whole))
    assert expected in said(verb, recipe, words, capsys)


def test_check_tells_all_independent_mistakes_at_once(recipe, capsys):
    (recipe.parent / "rows.jsonl").write_text('{"prompt": null}\n')
    (recipe.parent / "file").write_text("")
    words = ["--teacher.model", "./no/such", "--student.device", "cuda:63", "--evaluation.answer", "x"]
    told = said("check", recipe, [*words, "--output", str(recipe.parent / "file" / "run")], capsys)
    for expected in (
        "output: ",
        "student.device is 'cuda:63'",
        "evaluation.answer: 'x' has no group",
        "rows.jsonl:1 'prompt' is null",
        "the teacher './no/such' does not exist",
    ):
        assert expected in told
    assert told.count("the teacher './no/such' does not exist") == 1  # once, though its tokenizer is missing too


MISSING = {
    "peft": lambda: adapters.check_installed(Source("student", "a", "a", True)),
    "tensorboard": lambda: check_installed(("tensorboard",)),
}


@pytest.mark.parametrize("extra", MISSING)
def test_B41_a_missing_extra_names_its_pip_command(monkeypatch, extra):
    monkeypatch.setattr("tutelage.models.adapters.find_spec", lambda name: None)
    monkeypatch.setattr("tutelage.training.tracking.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape(f"pip install 'tutelage[{extra}]'")):
        MISSING[extra]()


@pytest.mark.parametrize(
    ("module", "name", "extra"), [("pyarrow", "train.parquet", "data"), ("datasets", "owner/name", "data")]
)
def test_B41_rows_that_need_an_extra(tmp_path, monkeypatch, capsys, module, name, extra):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "train.parquet").write_bytes(b"")
    path = tmp_path / "recipe.yaml"
    source = name if "/" in name else str(tmp_path / name)
    path.write_text(yaml.safe_dump(mapping(tmp_path, "sft", data={"train": source})))
    assert f"pip install 'tutelage[{extra}]'" in said("check", path, [], capsys)


def test_B41_every_extra_is_named_by_a_message():
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    source = "".join(file.read_text(encoding="utf-8") for file in Path("src/tutelage").rglob("*.py"))
    named = set(re.findall(r"pip install 'tutelage\[([\w-]+)\]'", source))
    trackers = {"tensorboard", "trackio", "wandb"}  # put together from the tracker's name
    assert set(extras) - {"all"} - trackers <= named


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
NASTY = {
    "billion laughs": (LAUGHS, "aliases repeat it into more than 100,000 values"),
    "inside itself": ("a: &a [*a]", "aliases repeat it into more than"),
    "deep": ("[" * 5000 + "]" * 5000, "nested too deeply, or inside itself"),
    "deep mapping": ("".join(f"{' ' * n}a:\n" for n in range(900)), "nested too deeply, or inside itself"),
    "large": ("a: " + "x" * LONGEST, "more than 1,000,000 characters"),
    "python object": ("student: !!python/object/apply:os.system [echo]", "not valid YAML: could not determine"),
    "binary": ("student: !!binary aGk=", "not valid YAML: could not determine"),
    "huge whole number": (f"seed: 0x{'f' * 9000}", "not valid YAML: a number of 9002 digits"),
    "tag that lies": ("seed: !!int abc", "not valid YAML: a value is not what its tag says"),
    "list as key": ("? [a, b]\n: 1", "not valid YAML: a key is a list or a mapping"),
    "key twice": ("seed: 1\nseed: 2", ":2: not valid YAML: key 'seed' appears twice"),
    "no mapping": ("- a\n- b", "expected keys and values such as 'method:'"),
    "empty": ("", "expected keys and values such as 'method:'"),
    "tab": ("a:\n\t- b", ":2: not valid YAML: found character"),
    "control character": ("a: \x07", "not valid YAML: special characters are not allowed"),
    "a date": ("seed: 2020-13-45", "seed must be a valid integer"),
    "unclosed": ("a: 'b", "not valid YAML: found unexpected end of stream"),
    "a name that is a mapping": ("method: {name: {a: 1}}", "unknown method '{'a': 1}'"),
    "wrong types": ("student: 3\nteacher: [1]\ntrain: x\ndata: null\noutput: {}", "student must be"),
}


@pytest.mark.parametrize("nasty", NASTY)
def test_nasty_recipes_end_in_one_clear_message(tmp_path, capsys, nasty):
    text, expected = NASTY[nasty]
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert expected in said("train", path, [], capsys)


def test_no_traceback_from_the_real_program(tmp_path):
    """The same as subprocesses, a few at a time in one interpreter: nothing but lines of `tutelage: …`."""
    files = []
    for number, (text, _) in enumerate(NASTY.values()):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text, encoding="utf-8")
    files.append(tmp_path / "latin.yaml")
    files[-1].write_bytes("seed: 1 # caf\u00e9".encode("latin1"))
    files += [tmp_path / "none.yaml", tmp_path]
    code = "import sys; from tutelage.cli import main; print([main(['train', path]) for path in sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == [2] * len(files)
    assert "Traceback" not in done.stderr
    for verb in VERBS:
        words = ["--out", "x"] if verb == "generate" else []
        done = subprocess.run(
            [sys.executable, "-m", "tutelage", verb, str(files[0]), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert re.fullmatch(r"tutelage: .*\n", done.stderr)


def test_aliases_that_save_typing_are_fine():
    text = "base: &base {steps: 3, batch_size: 2}\ntrain:\n  <<: *base\n  steps: 4"
    assert parse_yaml(text, "x")["train"] == {"steps": 4, "batch_size": 2}


def test_secrets_are_not_written_down(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2-hunter2")
    whole = mapping(tmp_path, "sft", data={"train": "https://me:sesame@host/rows.jsonl"})
    whole["student"] = {"from_config": {"model_type": "llama", "api_key": "open-sesame", "eos_token": "</s>"}}
    dumped = dump_recipe(recipe_of(whole))
    assert "sesame" not in dumped
    assert "https://[redacted]@host/rows.jsonl" in dumped
    assert "eos_token: </s>" in dumped
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**whole, "seed": "https://me:sesame@host", "output": "hunter2-hunter2"}))
    told = said("train", path, ["--train.steps", "hunter2-hunter2"], capsys)
    assert "seed must be" in told
    assert "sesame" not in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abc.def-ghi failed", "Authorization: Bearer [redacted] failed"),
        ("token hf_abcdefghijklmnopqrstuv is wrong", "token [redacted] is wrong"),
        ('{"api_key": "abc", "seed": 1}', '{"api_key": "[redacted]", "seed": 1}'),
        ("https://host/a?token=abc&b=1", "https://host/a?token=[redacted]&b=1"),
        ("set eos_token in the tokenizer_config.json", "set eos_token in the tokenizer_config.json"),
        ("train.micro_batch_tokens: 4096", "train.micro_batch_tokens: 4096"),
        ("rows.jsonl:17 key 'prompt' appears twice", "rows.jsonl:17 key 'prompt' appears twice"),
    ],
)
def test_what_is_redacted_in_messages(text, clean):
    assert redaction.redacted_text(text) == clean


def test_the_package_reads_no_yaml_but_in_one_place():
    """A second reader would have other limits."""
    found = [
        file.name
        for file in Path(tutelage.__file__).parent.rglob("*.py")
        if re.search(r"yaml\.(safe_|full_|unsafe_)?load", file.read_text(encoding="utf-8"))
    ]
    assert not found
