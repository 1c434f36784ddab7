"""`tutelage push`: a finished student with its card onto the Hugging Face hub."""

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx

from tutelage.commands.finished import finished_model
from tutelage.errors import InputError
from tutelage.redaction import redacted_text

FILES = (
    "README.md", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
    "adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.model", "vocab*",
    "merges.txt", "*.jinja",
)  # fmt: skip
"""What is uploaded: a model and its tokenizer; whatever else lies in the folder stays here."""
_UNFINISHED = "To fill in before this model is published"


def push(run: str, repo_id: str, *, private: bool = False, api: HfApi | None = None) -> str:
    """Upload a finished student with its model card; return the address.

    Nothing but the files of the model and its tokenizer is sent: no recipe, no samples, no metrics. Log in with
    `hf auth login` or `HF_TOKEN` first.

    Args:
        run: folder of a run, or of a model.
        repo_id: `owner/name`; the repository is made if there is none.
        private: whether a new repository is.
        api: how the hub is reached.

    Raises:
        InputError: there is no finished student, it needs a folder of this machine, or the hub refuses.
    """
    folder, hub = finished_model(run), api or HfApi()
    _refuse_local_base(folder)
    card = folder / "README.md"
    if card.is_file() and _UNFINISHED in card.read_text(encoding="utf-8", errors="replace"):
        print(f"note: {card} has parts that only people can fill in; edit it, and push again")
    try:
        where = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=where.repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload a student distilled with tutelage",
        )
    except LocalTokenNotFoundError:
        raise InputError("the hub does not know who you are; log in with: hf auth login (or set HF_TOKEN)") from None
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        raise InputError(f"cannot push to '{repo_id}': {redacted_text(str(error).splitlines()[0])}") from None
    print(f"pushed {folder} to {where}")
    return str(where)


def _refuse_local_base(folder: Path) -> None:
    """An adapter names its base, and others do not have this machine's folders."""
    settings = folder / "adapter_config.json"
    base = json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"] if settings.is_file() else None
    if base and Path(base).expanduser().exists():
        raise InputError(
            f"the adapter in {folder} names a base that others do not have ('{base}'); merge the two first "
            "(docs/adapters.md), or begin from a hub id"
        )
