"""Supervised distillation inside transformers' own Trainer: its arguments, callbacks and data collators, our loss.

    python examples/trainer_bridge.py         tiny random models, a few seconds

For models of yours: `AutoModelForCausalLM.from_pretrained`, and a data set with `input_ids` and `labels`.
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from tutelage.integrations.trainer import DistillationTrainer
from tutelage.methods import SupervisedKD

STOP, VOCABULARY, PROMPT = 1, 50, 4


def tiny_model() -> LlamaForCausalLM:
    """A random model of two small layers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes))


def tiny_rows(count: int) -> list[dict[str, list[int]]]:
    """Rows as a data set for fine-tuning has them: labels are -100 where there is nothing to learn, as on prompts."""
    rows = [[*row, STOP] for row in torch.randint(2, VOCABULARY, (count, 10)).tolist()]
    return [{"input_ids": row, "labels": [-100] * PROMPT + row[PROMPT:]} for row in rows]


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            model=tiny_model(),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=20,
                learning_rate=3e-3,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,  # as eight rows at once, to rounding
                logging_steps=1,
                report_to="none",
                save_strategy="no",
            ),
            train_dataset=tiny_rows(64),
            eval_dataset=tiny_rows(16),
            objective=SupervisedKD(divergence="jsd(0.5)"),
            teacher=tiny_model(),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        for line in trainer.state.log_history:
            if "loss" in line:
                print(f"step {line['step']}: loss {line['loss']:.4f} nats a token")
        print(f"on other rows: {before:.4f} before, {trainer.evaluate()['eval_loss']:.4f} after")


if __name__ == "__main__":
    main()
