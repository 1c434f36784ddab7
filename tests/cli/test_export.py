"""`tutelage export --gguf`: the converter is called, and its file computes what the student does."""

from pathlib import Path

import pytest
import torch
from tests.tiny import write_model
from transformers import AutoModelForCausalLM

from tutelage.cli import main
from tutelage.commands.export import export_gguf
from tutelage.errors import InputError, TutelageError

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
CONVERTER = str(Path(__file__).with_name("stub_converter.py"))


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", 1, max_position_embeddings=64)


@pytest.mark.parametrize(("outtype", "tolerance"), [("f32", 1e-5), ("f16", 5e-2)])
def test_the_file_is_the_student(tmp_path, model, capsys, outtype, tolerance):
    words = ["export", str(tmp_path), "--gguf", "--converter", CONVERTER, "--outtype", outtype]
    assert main(words) == 0
    assert "read back, its logits differ by up to" in capsys.readouterr().out
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=f"model-{outtype}.gguf")
    expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    torch.testing.assert_close(again(ids).logits, expected, rtol=tolerance, atol=tolerance)


def test_another_model_in_the_file_is_noticed(tmp_path, model):
    model.rename(tmp_path / "unrotated")
    with pytest.raises(TutelageError, match="is not the student"):
        export_gguf(str(tmp_path / "unrotated"), converter=CONVERTER, outtype="f32")


def test_what_cannot_be_exported_is_refused(tmp_path, model):
    with pytest.raises(InputError, match="no converter at"):
        export_gguf(str(model), converter="nowhere.py")
    with pytest.raises(InputError, match="no run and no model at"):
        export_gguf(str(tmp_path / "gone"), converter=CONVERTER)
    with pytest.raises(InputError, match="T5ForConditionalGeneration is not supported"):
        export_gguf(str(write_model(tmp_path / "t5", 1, "t5")), converter=CONVERTER)
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        export_gguf(str(model), converter=CONVERTER)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0")
    with pytest.raises(InputError, match="has no model/ yet"):
        export_gguf(str(tmp_path / "run"), converter=CONVERTER)
