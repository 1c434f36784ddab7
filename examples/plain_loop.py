"""GKD in a loop of your own: Tutelage's models, decoding and loss, and a plain PyTorch optimiser.

    python examples/plain_loop.py                                             tiny random models, a few seconds
    python examples/plain_loop.py STUDENT TEACHER rows.jsonl --out trained    folders or hub ids, and a file of rows

Rows have `prompt` and `completion`. What `tutelage train` adds: micro-batches, schedule, checkpoints, evaluation.
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage import LanguageModel, LocalTeacher, Rollout, methods
from tutelage.config import Decoding, Model
from tutelage.data import encode, read_rows
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.models.vocabulary import shared_vocabulary
from tutelage.randomness import generator
from tutelage.rollouts.decoding import decode

METHOD = methods.GKD(student_fraction=0.5, divergence="jsd(0.5)", student_decoding=Decoding(max_new_tokens=16))
SEED, BATCH = 0, 8


def tiny_world() -> tuple[LanguageModel, LanguageModel, Rollout, int]:
    """Two random models and rows of random ids; id 1 ends a response."""
    torch.manual_seed(SEED)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    models = [LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.3, **sizes)) for _ in range(2)]
    ids = torch.randint(2, 50, (64, 10)).tolist()
    rows = Rollout.of([row[:4] for row in ids], [[*row[4:], 1] for row in ids])
    return LanguageModel(models[0], stop_ids=(1,)), LanguageModel(models[1], stop_ids=(1,)), rows, 50


def real_world(student: str, teacher: str, source: str) -> tuple[LanguageModel, LanguageModel, Rollout, int]:
    """Models from folders or the hub, and rows from a file, as ids."""
    specs = {"student": Model(model=student), "teacher": Model(model=teacher)}
    tokenizers = {role: load_tokenizer(spec, role) for role, spec in specs.items()}
    networks = {role: load_model(spec, role, seed=SEED) for role, spec in specs.items()}
    both = {role: LanguageModel(net, stop_ids(net, tokenizers[role])) for role, net in networks.items()}
    heads = [both[role].head.vocabulary for role in specs]
    shared = shared_vocabulary(tokenizers["student"], tokenizers["teacher"], *heads)
    kind = {"stop_ids": frozenset(both["student"].stop_ids), "encoder_decoder": both["student"].is_encoder_decoder}
    examples = encode(read_rows(source), tokenizers["student"], max_prompt_tokens=512, max_tokens=1024, **kind)
    rows = Rollout.of([e.prompt for e in examples], [e.response for e in examples], masks=[e.mask for e in examples])
    return both["student"], both["teacher"], rows, shared.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="STUDENT TEACHER ROWS")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out")
    options = parser.parse_args()
    if len(options.paths) not in (0, 3):
        parser.error("give a student, a teacher and a file of rows, or nothing")
    student, teacher_model, rows, vocabulary = real_world(*options.paths) if options.paths else tiny_world()
    teacher = LocalTeacher(teacher_model, student.device)
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=options.learning_rate)
    for step in range(options.steps):
        chosen = generator(SEED, "order", step).choice(len(rows), min(BATCH, len(rows)), replace=False)
        rollout = rows.select([int(row) for row in chosen])
        if generator(SEED, "mixture", step).random() < METHOD.student_fraction:  # the student writes this batch
            settings = {"places": [(step, item) for item in rollout.items], "vocabulary": vocabulary}
            rollout = decode(student, rollout.prompts, METHOD.student_decoding, seed=SEED, **settings)
        terms = METHOD.terms(rollout, student, teacher, vocabulary)
        loss = terms.losses["student"] / METHOD.units(rollout)["student"]  # a sum over tokens becomes their mean
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.4f} nats a token, text by the {rollout.writers[0]}")
    if options.out:
        student.model.save_pretrained(options.out)


if __name__ == "__main__":
    main()
