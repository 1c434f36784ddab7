"""Models from GGUF files."""

import os
from pathlib import Path

import pytest
import torch
from tests.models.tiny import LETTERS, logits, stored, student_of

from tutelage import config
from tutelage.models import loading


@pytest.fixture
def tiny_gguf(tmp_path):
    """A two-layer Llama with a byte-pair tokenizer in a GGUF file, and its embedding."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        return torch.randn(*shape, generator=generator).numpy()

    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([1] * 60 + [3] * 4)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(60)
    writer.add_eos_token_id(61)
    embedding = weight(64, 32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", weight(32))
    writer.add_tensor("output.weight", weight(64, 32))
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
              "ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,),
              "ffn_norm": (32,)}  # fmt: skip
    for layer in range(2):
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf", embedding


def test_gguf_file_and_a_student_from_its_layers(tiny_gguf):
    path, embedding = tiny_gguf
    tokenizer = loading.load_tokenizer(config.Model(model=str(path)), "teacher")
    teacher = stored(path, "teacher")
    assert tokenizer.convert_ids_to_tokens([0, 25]) == ["a", "z"]
    assert torch.equal(teacher.get_input_embeddings().weight, torch.from_numpy(embedding))
    assert loading.stop_ids(teacher, tokenizer) == (61,)
    assert torch.equal(logits(student_of(teacher, (0, 1))), logits(teacher))
    assert student_of(teacher, (1,)).config.num_hidden_layers == 1


@pytest.mark.real_model
def test_real_gguf_model_writes_sense():
    """Set TUTELAGE_GGUF to a Llama, Qwen or Gemma `.gguf` file."""
    path = os.environ.get("TUTELAGE_GGUF")
    if not path or not Path(path).is_file():
        pytest.skip("TUTELAGE_GGUF names no file")
    spec = config.Model(model=path, device="cpu")
    tokenizer = loading.load_tokenizer(spec, "teacher")
    model = loading.load_model(spec, "teacher", seed=0)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        top = model(input_ids=ids).logits[0, -1].topk(5).indices.tolist()
    assert any("Paris" in tokenizer.decode([index]) for index in top)
