"""A reward of your own in a whole run: `gkd-reward` with a function of this file, on tiny random models.

    python examples/custom_reward.py                     about ten seconds
    python examples/custom_reward.py --alpha 1           the divergence alone, for comparison
    python examples/custom_reward.py --folder runs/vowels

With a recipe and models of yours, from the folder that the file is in:
`PYTHONPATH=. tutelage train RECIPE --method.reward.kind function --method.reward.function custom_reward:vowels`
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tutelage

WORDS = ["<pad>", "<eos>", *"abcdefghijklmnopqrst"]


def vowels(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return one finite number for each response, the higher the better: the share of its words that are vowels.

    It gets a whole batch at once, so that it may ask a model or a server. References are the data's own responses,
    empty where a row has none.
    """
    words = [response.split() for response in responses]
    return [sum(word in "aeio" for word in row) / max(len(row), 1) for row in words]


def write_world(folder: Path) -> None:
    """A tokenizer of words, two random models and a file of prompts."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": len(WORDS), "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**sizes, **tokens, initializer_range=0.1)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = [" ".join(WORDS[2 + (i + k) % 20] for k in range(3)) for i in range(20)]
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")


def recipe(folder: Path, alpha: float, steps: int) -> tutelage.Recipe:
    """What the YAML file of a run would say."""
    method = {
        "name": "gkd-reward",
        "alpha": alpha,  # the share of the divergence; 1 − alpha is that of the reward
        "divergence": "reverse_kl",
        "reward": {"kind": "function", "function": "custom_reward:vowels"},
        "baseline": "leave-one-out",
        "samples": 4,
        "student_decoding": {"max_new_tokens": 8},
    }
    return tutelage.recipe_of(
        {
            "method": method,
            "student": {"model": str(folder / "student")},
            "teacher": {"model": str(folder / "teacher")},
            "data": {"train": str(folder / "rows.jsonl")},
            "train": {"steps": steps, "batch_size": 16, "learning_rate": 1e-2},
            "evaluation": {"metrics": []},
            "output": str(folder / "run"),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_world(folder)
        run = tutelage.train(recipe(folder, options.alpha, options.steps), report=lambda line: None)
        for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            metrics = json.loads(line)
            if "reward" in metrics:
                print(
                    f"step {metrics['step']}: reward {metrics['reward']:.4f}, {metrics['divergence']:.4f} nats a token"
                )


if __name__ == "__main__":
    main()
