"""Every method on the demo's task: same start, same number of steps, same held-out problems.

    python benchmarks/methods.py [--seeds 0 1 2] [--only gkd minillm] [--folder runs/methods]

For each seed the demo's student is started on its 350 labelled rows; each method then goes on from there for 250
steps of 32 prompts. Printed for each method, over the seeds: share of right answers (greedy, and sampled at
temperature 1), reverse KL to the teacher on the student's own text, and the length of that text. Runs that are
finished are not done again.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tutelage.config import Decoding, Model
from tutelage.data import encode, read_rows
from tutelage.demo.run import ANSWER, demo_recipe, prepare
from tutelage.evaluation.agreement import agreement
from tutelage.evaluation.generated import exact_answer
from tutelage.models.language_model import LanguageModel
from tutelage.models.loading import load_model, load_tokenizer, stop_ids
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import Recipe, dump_recipe, parse_yaml, recipe_of
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.texts import response_texts
from tutelage.training.quiet import quiet_transformers
from tutelage.training.run import train

SHORT = {"max_new_tokens": 36}
STUDENT, TEACHER = {"student_decoding": SHORT}, {"teacher_decoding": {**SHORT, "strategy": "sample"}}
LABELS, PROMPTS = "labels.jsonl", "prompts.jsonl"

SLOW = {"learning_rate": 1e-3, "final_learning_rate": 1e-4}
"""For gradients of sampled returns, which are noisier than those of whole distributions."""
MINILLM = {"name": "minillm", "collection": 128, "inner_epochs": 2, **STUDENT}
AMMD = {"name": "moment-matching", "critic_rate": 100.0, "critic_steps": 2, **STUDENT, **TEACHER}
REWARD = {"name": "gkd-reward", "reward": {"kind": "function", "function": "tutelage.demo.task:rewards"}, **STUDENT}


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method with its keys, and the text it starts from."""

    name: str
    method: dict
    rows: str = PROMPTS
    train: dict | None = None


ENTRIES = [
    Entry("sft", {"name": "sft"}, LABELS),
    Entry("supervised-kd", {"name": "supervised-kd"}, LABELS),
    Entry("seqkd", {"name": "seqkd", **TEACHER}),
    Entry("seqkd, token-level KD", {"name": "seqkd", "cross_entropy": 0.0, **TEACHER}),
    Entry("on-policy-kd", {"name": "on-policy-kd", **STUDENT}),
    Entry("imitkd", {"name": "imitkd", "offline": "teacher", "student_decoding": SHORT, **TEACHER}),
    Entry("gkd, λ = 1, jsd(0.5)", {"name": "gkd", "student_fraction": 1.0, **STUDENT}),
    Entry(
        "gkd, λ = 0.5, jsd(0.5)", {"name": "gkd", "student_fraction": 0.5, "offline": "teacher", **STUDENT, **TEACHER}
    ),
    Entry("f-distill, js", {"name": "f-distill", "divergence": "js", **STUDENT, **TEACHER}),
    Entry("f-distill, tvd", {"name": "f-distill", "divergence": "tvd", **STUDENT, **TEACHER}),
    Entry("distillm-2", {"name": "distillm-2", **STUDENT, **TEACHER}),
    Entry("minillm-single-step", {"name": "minillm-single-step", **STUDENT}),
    Entry("minillm-ranking", {"name": "minillm-ranking", **STUDENT}, train=SLOW),
    Entry("minillm", MINILLM, train=SLOW),
    Entry("minillm, no teacher mix", {**MINILLM, "teacher_share": 0.0}, train=SLOW),
    Entry("minillm, no length normalisation", {**MINILLM, "length_normalisation": "none"}, train=SLOW),
    Entry("minillm, no single step", {**MINILLM, "single_step": False}, train=SLOW),
    Entry("distribution-matching, tv", {"name": "distribution-matching", **STUDENT, **TEACHER}),
    Entry("moment-matching (AMMD)", AMMD, train={"learning_rate": 3e-4, "final_learning_rate": 3e-5}),
    Entry("moment-matching (AMMD), greedy", {**AMMD, "greedy": True}, train=SLOW),
    Entry("gkd-reward, α = 0.5", {**REWARD, "alpha": 0.5}, train=SLOW),
    Entry("gkd-reward, α = 0 (reward alone)", {**REWARD, "alpha": 0.0}, train=SLOW),
]


def recipe_for(entry: Entry, folder: Path, seed: int, steps: int) -> Recipe:
    """The demo's recipe with another method and the rows that it needs."""
    base = parse_yaml(dump_recipe(demo_recipe("gkd", folder, seed)), "demo")
    base["method"] = entry.method
    base["data"]["train"] = str(folder / "data" / entry.rows)
    base["train"] |= {"steps": steps, **(entry.train or {})}
    base["output"] = str(folder / "".join(c if c.isalnum() else "-" for c in entry.name).strip("-"))
    return recipe_of(base)


def measure(model: Path, folder: Path, seed: int) -> dict[str, float]:
    """Accuracy of a student, its reverse KL to the teacher on its own text, and the length of that text."""
    spec = Model(model=str(model))
    tokenizer = load_tokenizer(spec, "student")
    network = load_model(spec, "student", seed=0)
    student = LanguageModel(network, stop_ids(network, tokenizer))
    teacher = LocalTeacher(LanguageModel(load_model(Model(model=str(folder / "teacher")), "teacher", seed=0)))
    rows = read_rows(str(folder / "data" / "test.jsonl"))
    examples = encode(rows, tokenizer, max_prompt_tokens=64, max_tokens=128, stop_ids=frozenset(student.stop_ids))
    references = [e.reference for e in examples]
    found = {}
    for strategy in ("greedy", "sample"):
        decoding = Decoding(strategy=strategy, max_new_tokens=36, batch_size=250)
        rollout = decode(student, [e.prompt for e in examples], decoding, seed=seed)
        found[strategy] = 100 * exact_answer(response_texts(rollout, tokenizer), references, ANSWER).value
    found["reverse_kl"] = agreement(student, teacher, rollout, 8192)["reverse_kl"].value
    found["length"] = statistics.mean(map(len, rollout.responses))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="names of lines, or their beginnings")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_transformers()
    entries = [e for e in ENTRIES if not options.only or any(e.name.startswith(o) for o in options.only)]
    results: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        folder = options.folder / f"seed-{seed}"
        prepare(folder, seed)
        train(demo_recipe("start", folder, seed), title=f"start, seed {seed}", report=lambda line: None)
        results.setdefault("start", []).append(measure(folder / "start" / "model", folder, seed))
        for entry in entries:
            recipe = recipe_for(entry, folder, seed, options.steps)
            run = train(replace(recipe, seed=seed), title=f"{entry.name}, seed {seed}", report=lambda line: None)
            results.setdefault(entry.name, []).append(measure(run.model, folder, seed))
    (options.folder / f"methods-{min(options.seeds)}.json").write_text(json.dumps(results, indent=1))
    print("\n| method | greedy | sampled | reverse KL | length |\n|---|---|---|---|---|")
    for name, found in results.items():
        cells = [
            spread([f[key] for f in found], digits)
            for key, digits in (("greedy", 1), ("sample", 1), ("reverse_kl", 3), ("length", 1))
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def spread(values: list[float], digits: int) -> str:
    """Mean, and the smallest and largest value."""
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
