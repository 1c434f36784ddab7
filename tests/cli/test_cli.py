"""The command line as a user meets it: help, mistakes, exit status, and each verb once."""

import json
import re
import subprocess
import sys
import time

import pytest
import yaml
from tests.tiny import mapping

from tutelage.cli import main, parse


def recipe_file(folder, method="gkd", **sections):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(mapping(folder, method, **sections)), encoding="utf-8")
    return str(path)


def test_help_imports_no_torch():
    code = (
        "import sys; from tutelage.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("False\n")


@pytest.mark.slow
def test_help_answers_in_half_a_second():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tutelage", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's allocator has the setting on Linux alone")
def test_large_tensors_begin_at_a_page(tmp_path):
    code = (
        f"from tutelage.cli import main\nmain(['schema', '--out', {str(tmp_path / 'schema.json')!r}])\n"
        "import torch\nprint(torch.empty(2**22, dtype=torch.uint8).data_ptr() % 4096)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"


def test_a_mistake_in_a_recipe_is_found_without_torch(tmp_path):
    path = recipe_file(tmp_path)
    code = (
        "import sys; from tutelage.cli import main\n"
        f"status = main(['train', {path!r}, '--train.learning-rat', '1'])\nprint(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "unknown key 'train.learning_rat'; did you mean 'train.learning_rate'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method.divergance", "jsd(0.5)"], "unknown key 'method.divergance'; did you mean 'method.divergence'?"),
        (["--method.divergence", "jsd(2)"], "beta of 'jsd' must lie strictly between 0 and 1 (got 2)"),
        (["--method.divergence", "kl"], "unknown divergence 'kl'; expected one of forward_kl"),
        (["--method.name", "gkt"], "unknown method 'gkt'; did you mean 'gkd'?"),
        (["--train.steps", "0"], "train.steps must be greater than or equal to 1 (got 0)"),
        (["--train.epochs", "3"], "give either steps or epochs"),
        (["--train.learning-rate", "fast"], "train.learning_rate must be a valid number"),
        (["--teacher", "null"], "method 'gkd' needs a teacher: add teacher.model"),
        (["--student.from-teacher.layers", "[0]"], "give exactly one of model, from_config, from_teacher"),
        (["--student.model", "/no/such/model"], "/no/such/model"),
        (["--data.train", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.columns", "{prompt: question}"], "question"),
    ],
)
def test_mistakes_end_with_status_2_and_one_clear_message(tmp_path, capsys, words, message):
    words = [word if word != "--teacher" else "--teacher." for word in words]
    if words[0] == "--teacher.":
        path = tmp_path / "recipe.yaml"
        without = {k: v for k, v in mapping(tmp_path, "gkd").items() if k != "teacher"}
        path.write_text(yaml.safe_dump(without), encoding="utf-8")
        words, path = [], str(path)
    else:
        path = recipe_file(tmp_path)
    for verb in ("train", "check"):
        assert main([verb, path, *words]) == 2
        assert message in capsys.readouterr().err


def test_numbers_written_as_1e_5_are_numbers(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(mapping(tmp_path, "sft")).replace("learning_rate: 0.01", "learning_rate: 1e-5")
    path.write_text(text, encoding="utf-8")
    from tutelage.recipe import load_recipe

    assert load_recipe(path).train.learning_rate == 1e-5
    assert load_recipe(path, ["--train.learning-rate", "2e-5"]).train.learning_rate == 2e-5


def test_a_key_that_appears_twice_is_a_mistake(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 1\nseed: 2\n", encoding="utf-8")
    assert main(["train", str(path)]) == 2
    assert "recipe.yaml:2: not valid YAML: key 'seed' appears twice" in capsys.readouterr().err


def test_check_shows_rows_counts_vocabulary_and_memory(tmp_path, capsys):
    assert main(["check", recipe_file(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "⟦a <eos>⟧" in printed or "⟦a<eos>⟧" in printed
    for expected in ("30 of 30 training rows", "22 shared ids", "'<eos>' (1)", "peak (in", "gkd, 6 steps"):
        assert expected in printed, expected


def test_check_names_a_teacher_whose_ids_mean_other_strings(tmp_path, capsys):
    path = recipe_file(tmp_path)
    file = tmp_path / "llama-teacher" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    assert main(["check", path]) == 2
    assert "tokenizers differ: 2 of" in capsys.readouterr().err


def test_generated_text_goes_on_where_it_stopped_and_trains(tmp_path, capsys):
    path, out = recipe_file(tmp_path), tmp_path / "text.jsonl"
    words = ["generate", path, "--by", "teacher", "--out", str(out), "--decoding.max-new-tokens", "4"]
    assert main(words) == 0
    whole = out.read_bytes()
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert len(rows) == 30
    cut = sum(len(row["completion"].split()) == 4 for row in rows)  # a word is a token, and the stop is another one
    told = re.search(r"note: (\d+) of the 30 responses written now did not end within 4", capsys.readouterr().out)
    assert told is not None
    assert 0 < cut <= int(told[1]) < 30  # the text leaves padding out, which these models write as well
    out.write_bytes(whole[: len(whole) // 2])  # cut in the middle of a line
    assert main(words) == 0
    assert out.read_bytes() == whole
    assert main([*words, "--decoding.temperature", "2"]) == 2  # other settings, same file
    trained = ["train", path, "--method.name", "sft", "--data.train", str(out), "--output", str(tmp_path / "on-text")]
    kept = [json.dumps(row) + "\n" for row in rows if row["completion"]]
    out.write_text("".join(kept))
    plain = mapping(tmp_path, "sft")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain))
    assert main(trained) == 0


@pytest.mark.parametrize("by", ["teacher", "student"])
def test_generated_text_goes_on_in_a_version_that_has_more_keys(tmp_path, by):
    path, out = recipe_file(tmp_path), tmp_path / "text.jsonl"
    words = ["generate", path, "--by", by, "--out", str(out), "--decoding.max-new-tokens", "4"]
    assert main(words) == 0
    note = tmp_path / "text.jsonl.settings.json"
    noted = json.loads(note.read_text())
    for section, key in (("model", "quantize" if by == "teacher" else "adapter"), ("decoding", "no_repeat_ngram_size")):
        del noted[section][key]
    note.write_text(json.dumps(noted))
    assert main(words) == 0
    assert main([*words, "--decoding.cuda-graphs", "true", "--decoding.batch-size", "7"]) == 0  # the same text
    if by == "teacher":
        assert main([*words, "--teacher.dtype", "bfloat16"]) == 2
    noted["model"]["dtype"] = "bfloat16"
    note.write_text(json.dumps(noted))
    assert main(words) == 2
    note.write_text("[]")
    assert main(words) == 2


def test_overrides_and_options_may_come_in_any_order():
    command = parse(["train", "--train.steps", "5", "r.yaml", "--resume", "never", "--seed=3", "--train.dropout"])
    assert command.options.recipe == "r.yaml"
    assert command.options.resume == "never"
    assert command.overrides() == ["--train.steps", "5", "--seed=3", "--train.dropout"]


def test_missing_keys_of_a_decoding_section_keep_the_owners_defaults(tmp_path):
    from tutelage.recipe import recipe_of

    sections = {"evaluation": {"decoding": {"max_new_tokens": 9}}}
    recipe = recipe_of(
        {**mapping(tmp_path, "sft", **sections), "method": {"name": "imitkd", "teacher_decoding": {"beams": 3}}}
    )
    assert (recipe.evaluation.decoding.strategy, recipe.evaluation.decoding.max_new_tokens) == ("greedy", 9)
    assert (recipe.method.teacher_decoding.strategy, recipe.method.teacher_decoding.beams) == ("beam", 3)
    assert recipe.method.student_decoding.strategy == "greedy"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--method.name", "sft"], 2),
        (["--method.name", "supervised-kd"], 2),
        (["--method.student-fraction", "0.5"], 2),
        (["--method.student-fraction", "1"], 0),
        (["--method.offline", "teacher"], 0),
        (["--method.name", "seqkd"], 0),
    ],
)
def test_prompts_without_responses_are_refused_before_the_run_where_they_are_needed(tmp_path, capsys, words, status):
    path = recipe_file(tmp_path, method="sft")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c"}\n')
    words = ["--data.train", str(tmp_path / "prompts.jsonl"), "--method.name", "gkd", *words]
    assert main(["check", path, *words]) == status
    if status:
        assert "prompts.jsonl:1 has a prompt only" in capsys.readouterr().err
        assert main(["train", path, *words]) == status
        assert not (tmp_path / "run-llama-sft" / "checkpoints").exists()
