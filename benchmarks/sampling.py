"""Sampling against transformers' `generate`, in tokens a second.

    python benchmarks/sampling.py [--prompts 32] [--tokens 64] [--rounds 5]

A random 4 × 256 Llama with 49,152 ids. Stop tokens are never drawn, so both write the same number of tokens.
"""

import argparse
import statistics

import torch
from timing import in_turn, machine, save, table
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage import LanguageModel
from tutelage.config import Decoding
from tutelage.rollouts.decoding import decode

VOCABULARY = 49152


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).eval()
    model = LanguageModel(network, stop_ids=(VOCABULARY,))  # an id that is never drawn
    prompts = torch.randint(3, VOCABULARY, (options.prompts, 32))
    rows = [tuple(row) for row in prompts.tolist()]
    decoding = Decoding(max_new_tokens=options.tokens, batch_size=options.prompts)

    def ours() -> None:
        decode(model, rows, decoding, seed=0)

    def theirs() -> None:
        network.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, temperature=1.0,
            max_new_tokens=options.tokens, eos_token_id=VOCABULARY, pad_token_id=0,
        )  # fmt: skip

    print(f"{machine()}; {options.prompts} prompts × {options.tokens} tokens\n")
    seconds = in_turn({"tutelage": ours, "generate": theirs}, options.rounds)
    written = options.prompts * options.tokens
    print(table(seconds, "tutelage"))
    for name, times in seconds.items():
        print(f"{name}: {written / statistics.median(times):,.0f} tokens a second")
    save("sampling", seconds)


if __name__ == "__main__":
    main()
