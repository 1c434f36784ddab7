"""Models, tokenizers and templates that are wrong or do not fit each other: B25 to B37, B42 and B43.

Each through the real command line. Which rows do not apply: none; of B30 only that nothing is needed is left, for
padding is told from text by lengths.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from tests.tiny import LLAMA, mapping, tokenizer, write_model
from tokenizers import normalizers
from transformers import BertConfig, BertForMaskedLM

from tutelage.cli import main

TALK = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
PLAIN_CHAT = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"
FORGETS = "{% for m in messages %}{{ m.content if loop.last else 'a' }} <eos> {% endfor %}"
ENDS_IN_T = "{% for m in messages %}{{ m.content }} t {% endfor %}"


@pytest.fixture
def recipe(tmp_path):
    """A recipe file for supervised distillation, over models and rows that a test may change before it is used."""
    whole = mapping(tmp_path, "supervised-kd")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def retokenize(recipe: Path, role: str, **changes) -> None:
    """Change attributes of a model's tokenizer."""
    folder = recipe.parent / f"llama-{role}"
    changed = tokenizer()
    for name, value in changes.items():
        setattr(changed, name, value)
    changed.save_pretrained(folder)


def say(recipe: Path, key: str, value: object) -> None:
    """Set a key of a recipe file."""
    whole = yaml.safe_load(recipe.read_text())
    section, name = key.split(".")
    whole[section][name] = value
    recipe.write_text(yaml.safe_dump(whole), encoding="utf-8")


def conversations(recipe: Path, count: int = 4, turns: list | None = None) -> None:
    rows = recipe.parent / "talk.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns or TALK}) + "\n" for _ in range(count)))
    say(recipe, "data.train", str(rows))
    say(recipe, "data.validation", None)


def status(verb: str, recipe: Path) -> int:
    more = ["--out", str(recipe.parent / "out.jsonl"), "--by", "student", "--decoding.max-new-tokens", "2"]
    return main([verb, str(recipe), *(more if verb == "generate" else [])])


def printed(capsys) -> str:
    """What was printed, for sentences that a console may have wrapped."""
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ["check", "train", "generate"])
def test_B25_conversations_need_a_chat_template(recipe, capsys, verb):
    conversations(recipe)
    assert status(verb, recipe) == 2
    said = capsys.readouterr().err
    assert "llama-student' has no chat template; use a tokenizer that has one, or prompt/completion rows" in said


def test_B26_the_mask_is_read_off_the_renderings_where_the_template_has_no_marks(recipe, capsys):
    retokenize(recipe, "student", chat_template=PLAIN_CHAT)
    retokenize(recipe, "teacher", chat_template=PLAIN_CHAT)
    conversations(recipe)
    assert status("check", recipe) == 0
    assert "a b <eos>⟦c <eos>⟧" in printed(capsys).replace("<eos> ⟦", "<eos>⟦")


@pytest.mark.parametrize("verb", ["check", "train", "generate"])
def test_B26_a_template_whose_mask_cannot_be_found_is_refused(recipe, capsys, verb):
    retokenize(recipe, "student", chat_template=FORGETS)
    conversations(recipe, turns=TALK * 2)
    assert status(verb, recipe) == 2
    assert "talk.jsonl:1 the chat template rewrites earlier turns" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "train", "generate"])
def test_B27_turns_that_end_in_what_does_not_stop_generation_are_told(recipe, capsys, verb):
    for role in ("student", "teacher"):
        retokenize(recipe, role, chat_template=ENDS_IN_T, unk_token="t")
    conversations(recipe)
    assert status(verb, recipe) == 0
    expected = "responses end in 't' (first: talk.jsonl:1), which is not among the tokens that stop generation"
    assert expected in printed(capsys)


def test_B27_check_shows_that_a_stop_token_is_trained(recipe, capsys):
    assert status("check", recipe) == 0
    assert "a response ends at '<eos>' (1); it is in the loss of 30 of 30 responses" in printed(capsys)


@pytest.mark.parametrize("verb", ["check", "train", "generate"])
def test_B28_a_begin_token_that_is_written_twice_is_told(recipe, capsys, verb):
    for role in ("student", "teacher"):
        retokenize(recipe, role, bos_token="s")
    say(recipe, "data.limit", 6)  # later responses begin with an s of their own
    say(recipe, "data.template", "s {prompt}")
    assert status(verb, recipe) == 0
    assert "twice" not in printed(capsys)
    say(recipe, "data.template", "s s {prompt}")
    recipe.with_name("out.jsonl").unlink(missing_ok=True)
    say(recipe, "train.learning_rate", 0.02)
    recipe.write_text(recipe.read_text().replace("run-llama", "another-run"))
    assert status(verb, recipe) == 0
    assert "6 of 6 rows have s twice, or at the start of their response (first: rows.jsonl:1)" in printed(capsys)


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_B29_B30_the_end_is_trained_and_text_is_written_whatever_the_padding_token_is(recipe, capsys, pad):
    for role in ("student", "teacher"):
        retokenize(recipe, role, pad_token=pad)
    for verb in ("check", "train", "generate"):
        assert status(verb, recipe) == 0
    assert "it is in the loss of 30 of 30 responses" in printed(capsys)


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B31_other_end_tokens_of_the_generation_settings_end_responses_too(recipe, capsys, verb):
    settings = recipe.parent / "llama-student" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [1, 0]}))
    assert status(verb, recipe) == 0
    expected = "a response ends at '<eos>', and by the model's own settings also at '<pad>' (0)"
    assert expected in printed(capsys)


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B32_a_padded_vocabulary_is_cut_and_told(recipe, capsys, verb):
    write_model(recipe.parent / "llama-teacher", 2, vocab_size=32)
    assert status(verb, recipe) == 0
    assert "vocabulary 22 (student) and 32 (teacher): same 22 tokens; logits sliced to the first 22 ids" in printed(
        capsys
    )


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B33_ids_that_mean_other_strings_are_refused(recipe, capsys, verb):
    file = recipe.parent / "llama-teacher" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    assert status(verb, recipe) == 2
    said = capsys.readouterr().err
    assert (
        "tokenizers differ: 2 of 22 shared ids stand for other strings (first: id 2 is 'a' for the student, 'b'" in said
    )
    assert "have the teacher write text with `tutelage generate`" in said


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B34_the_same_map_that_cuts_text_otherwise_is_refused(recipe, capsys, verb):
    lower = tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.save_pretrained(recipe.parent / "llama-teacher")
    assert status(verb, recipe) == 2
    assert "tokenizers differ: the same ids stand for the same strings, but '" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(("theirs", "said"), [(None, "the teacher has none"), (ENDS_IN_T, "the teacher's differs")])
def test_B35_one_template_for_both_models_is_told(recipe, capsys, verb, theirs, said):
    retokenize(recipe, "student", chat_template=PLAIN_CHAT)
    retokenize(recipe, "teacher", chat_template=theirs)
    conversations(recipe)
    assert status(verb, recipe) == 0
    assert f"conversations are rendered by the student's chat template for both models; {said}" in printed(capsys)


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B36_models_that_do_not_write_text_and_adapters_without_a_base_are_named(recipe, capsys, verb):
    folder = recipe.parent / "other"
    BertForMaskedLM(BertConfig(**LLAMA, vocab_size=22)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    say(recipe, "student.model", str(folder))
    assert status(verb, recipe) == 2
    said = capsys.readouterr().err
    assert "other' is a bert encoder, whose tokens see the ones after them; expected a decoder-only or encoder" in said
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert status(verb, recipe) == 2
    assert "adapter" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "train"])
def test_B37_a_student_that_is_its_teacher_or_larger_is_told(recipe, capsys, verb):
    write_model(recipe.parent / "llama-student", 1, num_hidden_layers=3)
    assert status(verb, recipe) == 0
    said = re.search(r"the student has ([\d,]+) parameters and its teacher only ([\d,]+); are", printed(capsys))
    assert said
    assert int(said[1].replace(",", "")) > int(said[2].replace(",", ""))
    say(recipe, "teacher.model", str(recipe.parent / "llama-student"))
    recipe.write_text(recipe.read_text().replace("run-llama", "another-run"))
    assert status(verb, recipe) == 0
    assert "llama-student): their divergence begins at zero" in printed(capsys)


@pytest.mark.parametrize("verb", ["train", "generate"])
def test_B42_pickled_weights_are_refused(recipe, capsys, verb):
    folder = recipe.parent / "llama-student"
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert status(verb, recipe) == 2
    said = capsys.readouterr().err
    assert "holds only pickled weights (pytorch_model.bin), which can run code when they are opened; convert" in said


@pytest.mark.parametrize("verb", ["check", "train", "generate"])
def test_B43_code_of_the_model_is_not_run_and_nobody_is_asked(recipe, capsys, verb, monkeypatch):
    monkeypatch.setattr("builtins.input", None)
    folder = recipe.parent / "llama-student"
    settings = json.loads((folder / "config.json").read_text())
    own = {"model_type": "ours", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(settings | own))
    (folder / "code.py").write_text(f"open({str(folder / 'owned')!r}, 'w')\n")
    assert status(verb, recipe) == 2
    assert "needs code of its own, which is not run unasked; read that code, then give" in capsys.readouterr().err
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("verb", ["check", "train", "generate"])
def test_B43_a_file_cannot_have_code_run(recipe, capsys, verb):
    commit = "0123456789" * 4
    say(recipe, "student.trust_remote_code", True)
    say(recipe, "student.revision", commit)
    assert status(verb, recipe) == 2
    said = capsys.readouterr().err
    assert "recipe.yaml: student.trust_remote_code is not taken from a file" in said
    assert "give it on the command line: --student.trust-remote-code" in said
    typed = [verb, str(recipe), "--student.trust-remote-code", "--train.steps", "0"]
    assert main([*typed, *(["--out", "x"] if verb == "generate" else [])]) == 2
    assert "not taken from a file" not in capsys.readouterr().err
