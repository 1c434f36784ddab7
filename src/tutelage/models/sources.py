"""Where a model lies: a folder, a GGUF file or a hub id; and one plain sentence when it does not."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import httpx
from safetensors import SafetensorError

from tutelage.errors import InputError

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub before the files in the cache are used."""

LIBRARY_ERRORS = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError,
    SafetensorError, StrictDataclassError, httpx.HTTPError,
)  # fmt: skip
"""What transformers and its libraries raise for files they cannot use."""


@dataclass(frozen=True)
class Source:
    """A place that `from_pretrained` can load from.

    Attributes:
        role: whose it is, for messages: 'student', 'teacher', "student's tokenizer", …
        name: as the user wrote it.
        location: the folder or hub id to hand to `from_pretrained`.
        is_local: whether `location` is a folder on this machine.
        options: further arguments of `from_pretrained`.
    """

    role: str
    name: str
    location: str
    is_local: bool
    options: dict[str, Any] = field(default_factory=dict)

    def error(self, problem: str) -> InputError:
        """An error that starts with whose model it is and how it was given."""
        return InputError(f"the {self.role} '{self.name}' {problem}")

    def explain(self, error: Exception) -> InputError:
        """Turn an error of the libraries into one line with what to do next."""
        text = _one_line(error)
        if "trust_remote_code" in text or "custom code" in text:
            return self.error(
                "needs code of its own, which is not run unasked; read that code, then give "
                "--student.trust-remote-code (or --teacher. …) together with the revision that you read"
            )
        if isinstance(error, ImportError) and "gguf_file" in self.options:
            return self.error("is a GGUF file, which needs: pip install 'tutelage[gguf]'")
        if "gated repo" in text:
            return self.error(_gated(self.location))
        return self.error(f"cannot be loaded: {text}")


def locate(name: str, role: str, revision: str | None = None) -> Source:
    """Find out what a model or tokenizer name stands for, before anything is loaded.

    Args:
        name: folder, `.gguf` file or hub id.
        role: whose it is, for messages.
        revision: branch, tag or commit of a hub id.

    Returns:
        The source. A hub id is looked up once; when the hub does not answer, its folder in
        the cache is used.

    Raises:
        InputError: there is no such folder, file, hub id or revision, or no access to it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(role, name, str(path), True)
    if path.suffix == ".gguf" and path.is_file():
        return Source(role, name, str(path.parent), True, {"gguf_file": path.name})
    source = Source(role, name, name, False)
    if path.is_file():
        raise source.error("is a single file; give its folder (with config.json and *.safetensors) or a .gguf file")
    if _looks_local(name):
        kind = "file" if path.suffix == ".gguf" else "folder"
        raise source.error(f"does not exist: no such {kind} as {path.absolute()}; check the path, or give a hub id")
    if _hub_answers(source, revision):
        return replace(source, options={"revision": revision})
    return replace(source, location=_cached_folder(source, revision), is_local=True)


def _looks_local(name: str) -> bool:
    """Whether a name that does not exist was meant as a path.

    >>> [_looks_local(name) for name in ("./student", "/data/student", "student.gguf", "gpt2")]
    [True, True, True, False]
    """
    parent = Path(name).expanduser().parent
    written_as_path = name.startswith(("/", "./", "../", "~")) or name.endswith((".gguf", "/"))
    return written_as_path or (parent != Path(".") and parent.exists())


def _hub_answers(source: Source, revision: str | None) -> bool:
    """Look a hub id up: whether the hub can be reached. Unknown and forbidden ids are refused here."""
    api = HfApi()
    try:
        if api.model_info(source.location, revision=revision, timeout=HUB_TIMEOUT).gated:
            api.auth_check(source.location)
    except GatedRepoError as error:
        raise source.error(_gated(source.location)) from error
    except RepositoryNotFoundError as error:
        raise source.error(
            "is neither a folder here nor a model on the hub that you can see; check the name, "
            "and for a private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise source.error(f"has no revision '{revision}' on the hub; give a branch, tag or commit of it") from error
    except HFValidationError as error:
        raise source.error("is neither a folder here nor a hub id of the form owner/name") from error
    except (OfflineModeIsEnabled, httpx.HTTPError):
        return False
    return True


def _cached_folder(source: Source, revision: str | None) -> str:
    """The folder in the cache that holds what was fetched of a hub id before."""
    try:
        return snapshot_download(
            source.location, revision=revision, local_files_only=True, allow_patterns=["config.json"]
        )
    except LocalEntryNotFoundError as error:
        raise source.error(
            "is no local folder, the hub cannot be reached (or HF_HUB_OFFLINE is set), and it is not in the "
            f"cache; give a folder, or run `hf download {source.location}` where there is a network"
        ) from error


def _gated(location: str) -> str:
    return (
        f"is gated: ask for access at https://huggingface.co/{location}, "
        "then log in with `hf auth login` or set HF_TOKEN"
    )


def _one_line(error: Exception, longest: int = 300) -> str:
    """The message of an error in one line of bounded length.

    >>> _one_line(ValueError("no such\\n  layer"))
    'no such layer'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
