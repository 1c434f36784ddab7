"""What a recipe may say, section by section.

Each section is one frozen dataclass: the library takes it as it is, a YAML recipe is read into it, and
the command line overrides it key by key. The text below each field is its documentation everywhere.
This module never imports torch, so that a mistake in a recipe is reported at once.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantisation = Literal["none", "int8", "nf4"]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]\S*$")]

DIVERGENCES: dict[str, str | None] = {
    "forward_kl": None,
    "reverse_kl": None,
    "jsd": "beta",
    "total_variation": None,
    "skew_forward_kl": "alpha",
    "skew_reverse_kl": "alpha",
}
"""Each divergence a recipe can name, with the name of its parameter where it has one."""


def split_divergence(text: str) -> tuple[str, float | None]:
    """Split a divergence as written in recipes into its name and parameter.

    Args:
        text: `name` or `name(parameter)`, the parameter strictly between 0 and 1.

    Returns:
        The name and the parameter, `None` where the divergence has none.

    Raises:
        ValueError: the name is unknown, or the parameter is missing, superfluous or out of range.

    >>> split_divergence("jsd(0.1)")
    ('jsd', 0.1)
    >>> split_divergence("reverse_kl")
    ('reverse_kl', None)
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([-+.\deE]+)\s*\))?\s*", text)
    name = match.group(1) if match else text
    if match is None or name not in DIVERGENCES:
        known = ", ".join(n if p is None else f"{n}({p})" for n, p in DIVERGENCES.items())
        raise ValueError(f"unknown divergence '{text}'; expected one of {known}")
    wanted, given = DIVERGENCES[name], match.group(2)
    if wanted is None and given is not None:
        raise ValueError(f"'{name}' takes no parameter; write '{name}'")
    if wanted is None:
        return name, None
    if given is None:
        raise ValueError(f"'{name}' needs its parameter {wanted}; write for instance '{name}(0.5)'")
    if not 0 < float(given) < 1:
        raise ValueError(
            f"{wanted} of '{name}' must lie strictly between 0 and 1 (got {given}); "
            "the limits are different divergences: forward_kl and reverse_kl"
        )
    return name, float(given)


def _checked_divergence(text: str) -> str:
    split_divergence(text)
    return text


DivergenceName = Annotated[
    str,
    AfterValidator(_checked_divergence),
    Field(
        description="How the two distributions are compared at each token: forward_kl, reverse_kl, jsd(0.5), "
        "total_variation, skew_forward_kl(0.1), skew_reverse_kl(0.1)."
    ),
]
CrossEntropyShare = Annotated[
    Share,
    Field(
        description="Share s of the cross-entropy with the tokens of the data or the teacher; the divergence has "
        "1 − s. Never taken on the student's own text, where there is nothing right to repeat."
    ),
]
LossTemperature = Annotated[
    Positive, Field(description="Divides both models' logits inside the divergence. No T² is applied.")
]
Reduction = Annotated[
    Literal["token", "sequence"],
    Field(
        description="Average over all tokens of the batch (token), or over the tokens of each sequence first "
        "(sequence, GKD's Eq. 2)."
    ),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FromTeacher:
    """A student made of the teacher's own layers: the usual start for a student of the same family."""

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Indices of the teacher's layers to keep, in order. Embeddings, norms and head are copied."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adapter:
    """A fresh adapter (PEFT) on a base model: it alone learns, and the student begins as the base is."""

    kind: Literal["lora"] = "lora"
    """`lora`: beside each chosen weight, the product of two thin matrices."""
    rank: Count = 16
    """Width of the thin matrices."""
    alpha: Positive = 32.0
    """What they add is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get some, such as `[q_proj, v_proj]`; `all-linear` is all but the output head."""
    dora: bool = False
    """Learn the length of each column of the weights apart from its direction (arXiv 2402.09353)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Model:
    """A model: where its weights come from and where it runs. Exactly one source is given."""

    model: str | None = None
    """Hub id, local folder with safetensors, `.gguf` file, or folder of a PEFT adapter."""
    from_config: dict[str, Any] | None = None
    """A transformers configuration (`model_type` and its sizes): fresh weights, drawn from `seed`."""
    from_teacher: FromTeacher | None = None
    """Copy the given layers of the teacher (students only)."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer, where it does not lie beside the weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Dtype = "float32"
    """Type of the weights. Students that are trained are best kept in float32 (see train.precision)."""
    device: str = "auto"
    """`auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, …"""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only together with a `revision` that is a commit."""
    adapter: Adapter | None = None
    """Put a fresh adapter on `model`, and train that alone (students only; docs/adapters.md)."""

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        given = [n for n in ("model", "from_config", "from_teacher") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of model, from_config, from_teacher (got {given or 'none'})")
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code needs a pinned revision: the 40 hexadecimal digits of a commit")
        if self.adapter is not None and self.model is None:
            raise ValueError("adapter goes on a stored model, which its own files name: give model")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Teacher(Model):
    """The model that knows: in this process, or behind an OpenAI-compatible server (docs/served-teacher.md)."""

    url: Url | Annotated[tuple[Url, ...], Field(min_length=1)] | None = None
    """Where it is served, such as `http://localhost:8000/v1`, or a list of servers of the same model; `model` is then
    the name that it is served under, and `tokenizer` is read here. `null` loads the model into this process."""
    quantize: Quantisation = "none"
    """Bits of its linear layers' weights while it is in memory: all of them, eight (`int8`, torchao) or four (`nf4`,
    bitsandbytes). The output head and the embeddings keep `dtype` (docs/quantised-teachers.md)."""
    protocol: Literal["vllm", "sglang"] = "vllm"
    """url only: how the server is asked for log-probabilities of prompts: as vLLM is, or as SGLang is."""
    top_k: Count = 64
    """url only: how many of its most probable tokens are compared at a position; all others are compared as one."""
    concurrency: Count = 16
    """url only: requests sent at a time."""
    timeout: Positive = 120.0
    """url only: seconds that a request may take before it is sent again."""
    patience: Positive = 600.0
    """url only: seconds that a request is tried again for before the run saves and stops."""
    key_variable: str = "OPENAI_API_KEY"
    """url only: environment variable with the server's API key; nothing is sent where it is not set."""

    @model_validator(mode="after")
    def _quantised_here(self) -> "Teacher":
        if self.quantize != "none" and self.url is not None:
            raise ValueError("a served teacher (url) is quantised by its server: leave quantize out")
        if self.quantize != "none" and self.model is None:
            raise ValueError("quantize is for stored weights, which are read as they are: give model")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers, none for a model in this process."""
        if self.url is None:
            return ()
        return (self.url,) if isinstance(self.url, str) else self.url


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Rows of text: prompts alone, prompts with completions, or conversations (`messages`)."""

    train: str
    """JSONL, JSON, CSV or Parquet file (also .gz), a folder of them, or a hub id (`name`, `name:split` or
    `name[config]:split`)."""
    validation: str | None = None
    """Rows held out for evaluation, in the same forms."""
    text: str | None = None
    """Plain text (.txt, also .gz) for methods with a language-modelling term on it, such as MiniLLM's."""
    text_tokens: Annotated[int, Field(ge=2)] = 256
    """Tokens in each row that the plain text is cut into."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps `prompt`, `completion` or `messages` to the column that holds it: `{prompt: question}`."""
    roles: dict[str, str] = Field(default_factory=dict)
    """Maps the roles of the data to those of the chat template: `{human: user, gpt: assistant}`."""
    template: Literal["auto", "chat", "plain"] | str = "auto"
    """`chat` renders prompts with the tokenizer's chat template, `plain` uses the text as it is; `auto`
    is `chat` for messages and `plain` otherwise. A text with `{prompt}` in it wraps each prompt."""
    max_prompt_tokens: Count = 1024
    """Rows with longer prompts are dropped and counted."""
    max_tokens: Count = 2048
    """Rows with a longer prompt and response together are dropped and counted."""
    limit: Count | None = None
    """Use only this many rows, from the start of the file."""
    validation_limit: Count | None = None
    """The same for the validation rows."""
    max_dropped: Share = 0.05
    """Largest share of the rows that may be dropped, for their length or another reason; more stop the run."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do about rows that are wrong in themselves (broken JSON, null, an unknown role): `stop` and name
    them, or `skip`: leave them out and count them as dropped."""
    surrogates: Literal["refuse", "replace"] = "refuse"
    """Lone surrogates, halves of characters that no tokenizer takes: `refuse` the row, or `replace` them by �."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Decoding:
    """How text is written by a model."""

    strategy: Literal["sample", "greedy", "beam"] = "sample"
    """`sample` draws each token, `greedy` takes the most probable one, `beam` searches."""
    temperature: Positive = 1.0
    """Divides the logits before sampling. 1 samples from the model itself."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among the k most probable tokens only; 0 is all of them."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the most probable tokens that hold this mass; 1 is all of them."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    """Never write n tokens that stand together in the text already (for decoder-only models, in the prompt too);
    0 forbids nothing. MiniLLM evaluates with 6."""
    beams: Count = 5
    """Width of the beam search."""
    max_new_tokens: Count = 128
    """Longest response, end-of-sequence included."""
    batch_size: Count = 64
    """Sequences decoded at the same time."""
    backend: Literal["tutelage", "generate"] = "tutelage"
    """Who decodes: our own loop (beam search always goes to `generate`), or transformers' `generate`, whose draws
    depend on the batch."""
    cuda_graphs: bool = False
    """On CUDA, record the steps of our own loop as CUDA graphs and replay them: for small models, whose steps take as
    long as launching their kernels does. Not yet run on a device (docs/decoding.md)."""

    @model_validator(mode="after")
    def _graphs_are_ours(self) -> "Decoding":
        if self.cuda_graphs and (self.backend == "generate" or self.strategy == "beam"):
            raise ValueError("cuda_graphs records our own loop: it needs backend 'tutelage', and no beam search")
        return self

    @model_validator(mode="after")
    def _ngrams_are_ours(self) -> "Decoding":
        if self.no_repeat_ngram_size and self.backend == "generate" and self.strategy != "beam":
            raise ValueError("no_repeat_ngram_size needs backend 'tutelage' (or beam search)")
        return self

    @property
    def law(self) -> dict[str, Any]:
        """What text depends on: all fields but those that change it by rounding at most."""
        return {name: value for name, value in vars(self).items() if name not in ("batch_size", "cuda_graphs")}

    @property
    def samples_the_model(self) -> bool:
        """Whether text is drawn from the model's own distribution, nothing sharpened or left out."""
        changed = (self.temperature, self.top_k, self.top_p, self.no_repeat_ngram_size) != (1, 0, 1, 0)
        return self.strategy == "sample" and not changed


def _filled(**defaults: Any) -> BeforeValidator:
    """Give the missing keys of a decoding section defaults of its owner's."""
    return BeforeValidator(lambda value: {**defaults, **value} if isinstance(value, dict) else value)


GreedyDecoding = Annotated[Decoding, _filled(strategy="greedy")]
BeamDecoding = Annotated[Decoding, _filled(strategy="beam", beams=5)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """The optimiser, its schedule and the size of a step."""

    steps: Count | None = None
    """Optimiser steps. Give this or `epochs`."""
    epochs: Positive | None = None
    """Passes over the training rows. Give this or `steps`."""
    batch_size: Count = 32
    """Sequences a step, over all processes; the gradient is exact however they are split."""
    micro_batch_tokens: Count = 4096
    """Tokens (padding included) in one forward pass: lower it when memory runs out."""
    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up from zero."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What follows the warm-up."""
    final_learning_rate: NonNegative = 0.0
    """Where the cosine and linear schedules end."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay, on matrices only (not on biases, norms and embeddings)."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    epsilon: Positive = 1e-8
    """AdamW's denominator guard."""
    clip_norm: Positive | None = 1.0
    """Largest norm of the gradient; `null` never clips (the norm is logged all the same)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs the forward and backward passes under autocast; the weights keep their type."""
    shard: Literal["none", "student", "both"] = "none"
    """With several processes: what is cut over them, so that each holds a part of the weights, gradients and optimiser
    state (docs/scale.md): nothing, the student, or student and teacher."""
    shard_within: Literal["run", "host"] = "run"
    """With `shard`: `run` cuts models over all processes; `host` over those of each host, so that every host holds all
    parts: more memory, and between hosts only the gradients are summed."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dropout: bool = False
    """Keep the student's dropout on while training."""
    save_every: Count | None = None
    """Steps between checkpoints; `null` saves at the end only."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept. With 1 there is none to fall back on when the disk damages it."""
    keep_best: Annotated[str, Field(pattern=r"^(lowest|highest) \S+$")] | None = None
    """Keep the checkpoint with the best evaluation besides: `lowest METRIC` or `highest METRIC`, such as
    `lowest loss` or `highest exact_answer`. Needs evaluation.every, and save_every as a multiple of it."""
    log_every: Count = 1
    """Steps between lines of metrics.jsonl."""
    merge_adapter: bool = False
    """Write the finished student as one whole model, its adapter added into the weights."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Further places that metrics go to, besides metrics.jsonl."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What follows a step with a loss, gradient or score that is not finite. It is never applied; `stop` saves the
    last good step and leaves, `skip` goes on with the next batch. Either way bad_batch_<step>.json gets the batch."""
    nonfinite_budget: Count = 10
    """How many such steps a run may skip before it stops all the same."""
    alarms: Literal["warn", "stop", "off"] = "warn"
    """Watch the student's text and the loss for what goes wrong in distillation (docs/health.md): say so, or save and
    leave as well, or do not look."""

    @model_validator(mode="after")
    def _one_duration(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluation:
    """What is measured on the validation rows, and when."""

    every: Count | None = None
    """Steps between evaluations; `null` evaluates before the first and after the last step only."""
    metrics: tuple[Literal["loss", "agreement", "distances", "exact_answer", "rouge_l"], ...] = ("loss",)
    """`loss` (nats a token on the references), `agreement` (divergences to the teacher and equal top
    tokens, on the references), `distances` (moment, total-variation and KL distances along whole responses, on the
    references and on text that the student samples), `exact_answer` and `rouge_l` (on generated text)."""
    decoding: GreedyDecoding = Field(default_factory=lambda: Decoding(strategy="greedy"))
    """How the text for `exact_answer` and `rouge_l` is generated."""
    answer: str | None = None
    """How `exact_answer` reads the answer out of a text: a regular expression, whose last match holds it in its
    first group; or `module:function`; or `null` for the whole text."""
    samples: Annotated[int, Field(ge=0)] = 8
    """Generated rows written to samples.jsonl at each evaluation."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherCache:
    """What is kept on disk of what the teacher says of fixed text, so that it reads that text once."""

    kind: Literal["hidden", "top-k"] | None = None
    """`hidden` keeps the final hidden states, which with the head give the whole distribution again; `top-k` keeps the
    most probable tokens and the mass of all others; `null` keeps nothing, and the teacher runs at every step."""
    folder: str | None = None
    """Where; `teacher_cache` in the run's own folder by default. Runs with the same teacher may share one."""
    dtype: Literal["exact", "bfloat16", "float16"] = "exact"
    """Type of the numbers. `exact` is the teacher's own for `hidden`, and float32 for `top-k`."""
    mass: Annotated[float, Field(gt=0, le=1)] = 0.99
    """top-k only: keep, at each position, the fewest tokens that hold this mass together; 1 keeps `max_k` of them."""
    max_k: Count = 64
    """top-k only: keep no more tokens than these at a position."""
