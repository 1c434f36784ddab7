"""A tiny teacher behind the reference server, and the same one in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.servers.reference import NAME, Reference, running

from tutelage import config
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, student, teacher, and a teacher that is another one."""
    made = tmp_path_factory.mktemp("served")
    tiny.mapping(made, "gkd")
    tiny.write_model(made / "other", seed=9)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[Reference]:
    with running(Reference(folder / "llama-teacher")) as found:
        yield found


def spec(folder: Path, *servers: Reference, **changes) -> config.Teacher:
    """The teacher of a recipe; impatient, for tests."""
    urls = tuple(server.url for server in servers)
    given = {"url": urls[0] if len(urls) == 1 else urls, "timeout": 10.0, "patience": 20.0, **changes}
    return config.Teacher(**{"model": NAME, "tokenizer": str(folder / "llama-teacher"), **given})


def here(folder: Path, name: str) -> LanguageModel:
    """A model of the folder in this process, in float64."""
    model = load_model(config.Model(model=str(folder / name), device="cpu"), "student", seed=0)
    return LanguageModel(model.to(torch.float64), (1,))  # pyright: ignore
