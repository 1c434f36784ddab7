"""`tutelage push`: what goes to the hub, and what never does."""

import json

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from tests.tiny import mapping

from tutelage.cli import main
from tutelage.commands import push as module
from tutelage.commands.push import push
from tutelage.errors import InputError
from tutelage.recipe import recipe_of
from tutelage.training.run import train


class Hub:
    """What would be on the hub."""

    def __init__(self, refusal=None):
        self.repositories, self.files, self.refusal = {}, {}, refusal

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.refusal:
            raise self.refusal
        self.repositories[repo_id] = private
        return type("Url", (str,), {"repo_id": repo_id})(f"https://hub.example/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        self.files[repo_id] = set(filter_repo_objects(names, allow_patterns=allow_patterns))


@pytest.fixture
def run(tmp_path):
    return train(recipe_of(mapping(tmp_path, "sft", train={"steps": 2})), report=lambda text: None).folder


def test_model_tokenizer_and_card_are_sent_and_nothing_else(run, capsys):
    for name in (".env", "token", "secrets.json", "notes.txt", "optimizer.pt"):
        (run / "model" / name).write_text("hf_secret")
    hub = Hub()
    assert push(str(run), "me/student", private=True, api=hub) == "https://hub.example/me/student"
    assert hub.repositories == {"me/student": True}
    sent = hub.files["me/student"]
    assert sent >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not sent & {".env", "token", "secrets.json", "notes.txt", "optimizer.pt"}
    assert "only people can fill in" in capsys.readouterr().out


def test_the_command(run, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr(module, "HfApi", lambda: hub)
    assert main(["push", str(run), "me/student"]) == 0
    assert hub.repositories == {"me/student": False}
    assert "pushed" in capsys.readouterr().out


def test_a_hub_that_refuses_is_one_line(run):
    with pytest.raises(InputError, match="hf auth login"):
        push(str(run), "me/student", api=Hub(LocalTokenNotFoundError("none")))
    response = httpx.Response(403, request=httpx.Request("POST", "https://hub.example"))
    refusal = HfHubHTTPError("403 Forbidden: token=abcdefghij1234\nmore", response=response)
    with pytest.raises(InputError, match=r"cannot push to 'me/student': 403 Forbidden") as raised:
        push(str(run), "me/student", api=Hub(refusal))
    assert "abcdefghij" not in str(raised.value)


def test_adapters_on_a_folder_of_this_machine_are_refused(tmp_path):
    for base, refused in ((str(tmp_path), True), ("owner/base", False)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        hub = Hub()
        if refused:
            with pytest.raises(InputError, match="a base that others do not have"):
                push(str(tmp_path), "me/adapter", api=hub)
        else:
            push(str(tmp_path), "me/adapter", api=hub)
            assert hub.files["me/adapter"] == {"adapter_config.json"}
