"""Sampling against transformers' `generate`, in tokens a second.

    python benchmarks/sampling.py [--rounds 5] [--only equal spread …] [--toy]
    python benchmarks/sampling.py --model PATH --dtype bfloat16     # another model: SmolLM2, …
    python benchmarks/sampling.py --model PATH --dtype bfloat16 --only equal --server http://127.0.0.1:8123/v1

A random 4 × 256 Llama with 49,152 ids, 32 prompts of 32 tokens, both at temperature 1 over the whole vocabulary.

equal    64 tokens each: the stop token is never drawn. With --server an OpenAI-compatible server of the same model,
         such as vLLM's on the same cores, writes as much in one request.
spread   8 to 128 tokens each. Both are told, in the same way, when each response ends: the stop token is impossible
         before, and the only one then. `generate` goes on computing responses that are over.
refill   the same with 96 prompts, 32 at a time: `generate` takes them in three batches.
samples  8 prompts of 128 tokens, 4 samples of 64 tokens each: ours reads each prompt once.
mixed    teacher-mixed sampling (teacher 8 × 576, share 0.2) against the student's sampling and the teacher's reading
         of the same text, token by token with its logits, one after the other.
memory   resident memory that sampling needs beyond the model and its first forward pass, each in a fresh process.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import httpx
import torch
from memory import forget_peak, peak
from task import STUDENT, TEACHER, TINY
from timing import in_turn, machine, save, table
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from tutelage import LanguageModel
from tutelage.config import Decoding
from tutelage.rollouts.decoding import OneModel, decode, evaluating
from tutelage.rollouts.mixed import decode_mixed
from tutelage.rollouts.rollout import Ids
from tutelage.rollouts.writing import write

STOP, MEBIBYTE = 2, 2**20
BARS = {"equal": 1 / 2.2, "spread": 1 / 3, "refill": 1 / 3, "mixed": 1.2}
BARS_OF_A_MODEL = {"equal": 1 / 1.45}
SETTLES = 5.0  # seconds: a server's threads go on spinning for some time after a reply
ROWS = ("equal", "spread", "refill", "samples", "mixed")


class Task:
    """A model, prompts of random tokens, and how long each response is."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.options, self.batch = options, 4 if options.toy else 32
        self.tokens, self.longest = (8, 12) if options.toy else (64, 128)
        self.network = load(options)
        self.vocabulary = self.network.config.vocab_size
        self.endless = LanguageModel(self.network, stop_ids=(self.vocabulary,))  # an id that is never drawn

    def prompts(self, count: int, length: int = 32) -> list[Ids]:
        """Random prompts of equal length, as `generate` needs no padding for."""
        return [tuple(row) for row in torch.randint(3, self.vocabulary, (count, length)).tolist()]

    def lengths(self, prompts: list[Ids]) -> dict[Ids, int]:
        """Lengths spread evenly, in no order."""
        spread = torch.linspace(8, self.longest, len(prompts)).round().long()[torch.randperm(len(prompts))]
        return dict(zip(prompts, spread.tolist(), strict=True))


def load(options: argparse.Namespace) -> torch.nn.Module:
    """The model of the options, or the random one."""
    if options.model:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    return random_model(options, TINY if options.toy else STUDENT)


def random_model(options: argparse.Namespace, sizes: dict[str, int]) -> LlamaForCausalLM:
    """A Llama of random weights."""
    return LlamaForCausalLM(LlamaConfig(vocab_size=512 if options.toy else 49152, **sizes)).eval()


class EndsAt(LogitsProcessor):
    """Ends each of `generate`'s responses at its length."""

    def __init__(self, prompt_tokens: int, lengths: Sequence[int]) -> None:
        self._first, self._lengths = prompt_tokens, torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Make the stop token impossible or certain."""
        return forced(scores, self._lengths == input_ids.shape[1] - self._first + 1)


class Forced(OneModel):
    """Ends each of our responses at its length."""

    def __init__(self, model: LanguageModel, lengths: Mapping[Ids, int]) -> None:
        super().__init__(model)
        self._length_of, self._left = lengths, torch.zeros(0, dtype=torch.long)

    def read(self, prompts: Sequence[Ids]) -> Tensor:
        """Read prompts."""
        new = torch.tensor([self._length_of[prompt] for prompt in prompts])
        self._left = torch.cat([self._left, new])
        return forced(super().read(prompts), new == 1)

    def step(self, tokens: Tensor) -> Tensor:
        """Read tokens."""
        self._left = self._left - 1
        return forced(super().step(tokens), self._left == 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with some."""
        self._left = self._left[rows]
        super().keep(rows)


def forced(logits: Tensor, ends: Tensor) -> Tensor:
    """The stop token is certain where a response ends, and impossible elsewhere."""
    logits[:, STOP] = torch.where(ends, 1e9, -torch.inf)
    return logits


def equal(task: Task) -> dict[str, Callable[[], object]]:
    """All responses of one length."""
    prompts = task.prompts(task.batch)
    decoding = Decoding(max_new_tokens=task.tokens, batch_size=task.batch)
    peers: dict[str, Callable[[], object]] = {
        "tutelage": lambda: decode(task.endless, prompts, decoding, seed=0),
        "generate": lambda: generated(task, prompts, task.tokens),
    }
    if task.options.server:
        peers["server"] = lambda: served(task, prompts, task.tokens)
    return peers


def served(task: Task, prompts: list[Ids], tokens: int) -> None:
    """What a server does in one request."""
    url = task.options.server
    name = httpx.get(f"{url}/models").raise_for_status().json()["data"][0]["id"]
    wanted = {"model": name, "prompt": [list(ids) for ids in prompts], "max_tokens": tokens, "temperature": 1.0}
    reply = httpx.post(f"{url}/completions", json={**wanted, "ignore_eos": True}, timeout=600).raise_for_status().json()
    assert reply["usage"]["completion_tokens"] == tokens * len(prompts)


def spread(task: Task, batches: int = 1) -> dict[str, Callable[[], object]]:
    """Responses of lengths that are spread."""
    prompts = task.prompts(batches * task.batch)
    lengths, model = task.lengths(prompts), LanguageModel(task.network, stop_ids=(STOP,))
    decoding = Decoding(max_new_tokens=task.longest, batch_size=task.batch)
    places = [(row,) for row in range(len(prompts))]

    def ours() -> None:
        with evaluating(model):
            options = {"stop_ids": model.stop_ids, "seed": 0, "device": model.device}
            texts, _ = write(Forced(model, lengths), prompts, places, decoding, **options)
        assert [len(text) for text in texts] == [lengths[prompt] for prompt in prompts]

    def theirs() -> None:
        for start in range(0, len(prompts), task.batch):
            batch = prompts[start : start + task.batch]
            ends = LogitsProcessorList([EndsAt(len(batch[0]), [lengths[prompt] for prompt in batch])])
            generated(task, batch, task.longest, logits_processor=ends, eos_token_id=STOP)

    return {"tutelage": ours, "generate": theirs}


def refill(task: Task) -> dict[str, Callable[[], object]]:
    """More prompts than places."""
    return spread(task, batches=3)


def samples(task: Task) -> dict[str, Callable[[], object]]:
    """Several samples a prompt."""
    prompts = task.prompts(task.batch // 4, length=128)
    decoding = Decoding(max_new_tokens=task.tokens, batch_size=task.batch)
    repeated = [prompt for prompt in prompts for _ in range(4)]
    return {
        "tutelage": lambda: decode(task.endless, repeated, decoding, seed=0),
        "generate": lambda: generated(task, prompts, task.tokens, num_return_sequences=4),
    }


def mixed(task: Task) -> dict[str, Callable[[], object]]:
    """Student and teacher writing together, and each alone."""
    network = random_model(task.options, TINY if task.options.toy else TEACHER)
    teacher = LanguageModel(network, stop_ids=(task.vocabulary,))
    prompts = task.prompts(task.batch)
    decoding = Decoding(max_new_tokens=task.tokens, batch_size=task.batch)
    text = torch.randint(3, task.vocabulary, (task.tokens, task.batch))

    def reading() -> None:
        with evaluating(teacher):
            policy = OneModel(teacher)
            policy.read(prompts)
            for tokens in text[:-1]:
                policy.step(tokens)

    def one_after_the_other() -> None:
        decode(task.endless, prompts, decoding, seed=0)
        reading()

    return {
        "tutelage": lambda: decode_mixed(task.endless, teacher, prompts, decoding, teacher_share=0.2, seed=0),
        "student, then teacher": one_after_the_other,
        "student alone": lambda: decode(task.endless, prompts, decoding, seed=0),
        "teacher alone": reading,
    }


def generated(task: Task, prompts: list[Ids], tokens: int, **options: object) -> None:
    """What transformers does."""
    ids = torch.tensor(prompts)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
    settings |= {"eos_token_id": task.vocabulary, "max_new_tokens": tokens, **options}
    task.network.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def written(task: Task, row: str) -> int:
    """Tokens that one run of a row writes."""
    if row in ("spread", "refill"):
        prompts = task.prompts(task.batch * (3 if row == "refill" else 1))
        return sum(task.lengths(prompts).values())
    return task.batch * task.tokens


def needed(options: argparse.Namespace, who: str) -> int:
    """Bytes that sampling needs in this process, the model and what it loads once left out."""
    task = Task(options)
    with torch.no_grad():
        task.network(torch.ones(task.batch, 32, dtype=torch.long), use_cache=False)
    run = equal(task)[who]
    before = forget_peak()
    run()
    return peak() - before


def needed_apart(who: str) -> int:
    """The same, found by a process of its own."""
    command = [sys.executable, *sys.argv, "--memory-of", who]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def judged(row: str, seconds: Mapping[str, list[float]], bars: Mapping[str, float]) -> str:
    """Say whether the bar of a row is met."""
    ours, other = list(seconds.values())[:2]
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, other, strict=True))
    if row not in bars:
        return f"no bar: {ratio:.2f} of the time"
    return f"{'met' if ratio <= bars[row] else 'MISSED'}: {ratio:.2f} of the time, allowed {bars[row]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=(*ROWS, "memory"))
    parser.add_argument("--model", help="folder of a model, instead of the random one")
    parser.add_argument("--server", metavar="URL", help="of an OpenAI-compatible server with the same model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # how it calls itself in a fresh process
    options = parser.parse_args()
    if options.memory_of:
        print(needed(options, options.memory_of))
        return
    task, rounds = Task(options), 1 if options.toy else options.rounds
    rows = options.only or [*ROWS, "memory"]
    print(f"{machine()}; {options.model or 'random Llama'}, {next(task.network.parameters()).dtype}\n")
    results: dict[str, object] = {}
    pause = SETTLES if options.server else 0.0
    for row in [row for row in ROWS if row in rows]:
        seconds = results[row] = in_turn(globals()[row](task), rounds, pause)
        speeds = [f"{name} {written(task, row) / statistics.median(times):,.0f}" for name, times in seconds.items()]
        print(f"{row}\n\n{table(seconds, 'tutelage')}\n\ntokens a second: {', '.join(speeds)}")
        print("" if options.toy else judged(row, seconds, BARS_OF_A_MODEL if options.model else BARS), "\n", flush=True)
    if "memory" in rows:
        results["memory"] = memory = {who: needed_apart(who) for who in ("tutelage", "generate")}
        print("memory of `equal`:", ", ".join(f"{who} {size / MEBIBYTE:,.0f} MiB" for who, size in memory.items()))
    save(f"sampling-{options.dtype}" if options.model else "sampling", results)


if __name__ == "__main__":
    main()
