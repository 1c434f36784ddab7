"""In place of llama.cpp's convert_hf_to_gguf.py: tiny Llamas, with its arguments and its order of the rotary rows."""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}  # fmt: skip


def rotated(weight, heads):
    """Rotary pairs side by side, as GGUF has them for Llama."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--outfile", type=Path)
    parser.add_argument("--outtype")
    options = parser.parse_args()
    settings = json.loads((options.model / "config.json").read_text())
    if settings["model_type"] != "llama":
        raise SystemExit(f"Model {settings['architectures'][0]} is not supported")
    weights = load_file(options.model / "model.safetensors")
    heads, groups = settings["num_attention_heads"], settings["num_key_value_heads"]
    writer = gguf.GGUFWriter(options.outfile, "llama")
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_dimension_count(settings["hidden_size"] // heads)
    writer.add_vocab_size(settings["vocab_size"])
    kind = np.float16 if options.outtype == "f16" else np.float32

    def put(name, weight):
        writer.add_tensor(name, weight.astype(kind if weight.ndim > 1 else np.float32))

    put("token_embd.weight", weights["model.embed_tokens.weight"])
    put("output_norm.weight", weights["model.norm.weight"])
    put("output.weight", weights["lm_head.weight"])
    for layer in range(settings["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k") and "unrotated" not in options.model.name:
                weight = rotated(weight, heads if ours == "attn_q" else groups)
            put(f"blk.{layer}.{ours}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
