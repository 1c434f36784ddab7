"""`tutelage try`: a student and its teacher asked the same, side by side in the terminal."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.commands.finished import trained
from tutelage.config import Decoding, Model
from tutelage.data import Row, encode
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.pair import Pair, load_pair
from tutelage.recipe import check_section, load_recipe
from tutelage.reports.page import DARK_SCALE, LEVELS, level
from tutelage.reports.token_view import Token, token_views
from tutelage.rollouts.decoding import decode
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.rollouts.texts import response_texts

_PROMPT_TOKENS = 2**17  # a prompt that is typed is never dropped for its length


@dataclass(frozen=True)
class _Asked:
    """Who is asked, and how."""

    models: Pair
    template: str
    decoding: Decoding
    seed: int


@dataclass(frozen=True)
class _Named:
    """What RUN_OR_MODEL stands for."""

    student: Model
    teacher: Model | None
    template: str | None
    decoding: Decoding
    seed: int


def try_out(
    run: str,
    prompt: str | None,
    *,
    teacher: str | None = None,
    samples: int | None = None,
    settings: Mapping[str, Any] | None = None,
    keys: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print what a student and its teacher answer, and how far they are apart at each of the student's tokens.

    Args:
        run: folder of a run, or a model.
        prompt: what to ask; `None` reads prompts from standard input, one a line.
        teacher: a model to compare with, in place of the run's own.
        samples: so many sampled answers of each; one greedy answer by default.
        settings: keys of `Decoding`.
        keys: recipe keys that differ from the run's, as on the command line.
        console: where to print.

    Raises:
        InputError: there is no such run or model, or a setting is wrong.
    """
    if samples is not None and samples < 1:
        raise InputError(f"--samples {samples}: give at least 1")
    console = console or Console(highlight=False)
    asked = _load(_named(run, teacher, samples, settings or {}, keys))
    for text in [prompt] if prompt is not None else _typed():
        _answer(asked, text, samples or 1, console)


def _typed() -> Iterator[str]:
    """The lines of standard input that are not empty."""
    asking = sys.stdin.isatty()
    while True:
        if asking:
            print("› ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _named(
    run: str, teacher: str | None, samples: int | None, settings: Mapping[str, Any], keys: Sequence[str]
) -> _Named:
    chosen = {"strategy": "greedy" if samples is None else "sample", **settings}
    own = None if teacher is None else Model(model=teacher)
    config = Path(run) / "config.yaml"
    if not config.is_file():
        if keys:
            raise InputError(f"{run} holds no run (no config.yaml), so there is no recipe that {keys[0]} could change")
        return _Named(Model(model=run), own, None, check_section(Decoding, chosen, "decoding"), 0)
    recipe = load_recipe(config, keys)
    written = recipe.evaluation.decoding
    lengths = {"max_new_tokens": written.max_new_tokens, "no_repeat_ngram_size": written.no_repeat_ngram_size}
    decoding = check_section(Decoding, {**lengths, **chosen}, "decoding")
    return _Named(trained(Path(run), recipe), own or recipe.teacher, recipe.data.template, decoding, recipe.seed)


def _load(named: _Named) -> _Asked:
    models = load_pair(named.student, named.teacher, named.seed)
    has_template = getattr(models.tokenizer, "chat_template", None) is not None
    template = named.template or ("chat" if has_template else "plain")
    return _Asked(models, template, named.decoding, named.seed)


def _answer(asked: _Asked, prompt: str, samples: int, console: Console) -> None:
    models = asked.models
    example = encode(
        [Row("prompt", prompt=prompt)],
        models.tokenizer,
        template=asked.template,
        max_prompt_tokens=_PROMPT_TOKENS,
        max_tokens=_PROMPT_TOKENS,
        stop_ids=frozenset(models.student.stop_ids),
        encoder_decoder=models.student.is_encoder_decoder,
    )[0]
    own = _written(asked, models.student, example.prompt, samples)
    if models.teacher is None:
        for text in response_texts(own, models.tokenizer):
            console.print(Text(text))
        console.print(Text("no teacher to compare with; name one with --teacher", style="dim"))
        return
    theirs = _written(asked, models.teacher.model, example.prompt, samples)
    views = token_views(models.student, models.teacher, own, models.tokenizer, vocabulary=models.vocabulary)
    table = Table("teacher", "student", box=SIMPLE_HEAD, expand=True, show_lines=samples > 1)
    for column in table.columns:
        column.ratio, column.overflow = 1, "fold"
    for text, view in zip(response_texts(theirs, models.tokenizer), views, strict=True):
        table.add_row(Text(text), coloured(view))
    console.print(table)
    for number, (view, response) in enumerate(zip(views, theirs.responses, strict=True), 1):
        console.print(Text(_summary(view, response, number if samples > 1 else None), style="dim"))
    console.print(_legend())


def _written(asked: _Asked, writer: LanguageModel, prompt: Ids, samples: int) -> Rollout:
    places, vocabulary = [(sample,) for sample in range(samples)], asked.models.vocabulary
    return decode(writer, [prompt] * samples, asked.decoding, seed=asked.seed, places=places, vocabulary=vocabulary)


def coloured(view: Sequence[Token]) -> Text:
    """A student's answer, its tokens on a darker red, and from 0.7 nats on underlined, the further it is off."""
    return Text.assemble(*((token.text, _style(level(token.reverse_kl))) for token in view if token.text))


def _style(depth: int) -> str:
    underlined = "underline " if depth >= 4 else ""
    return f"{underlined}white on {DARK_SCALE[depth]}" if depth else ""


def _summary(view: Sequence[Token], response: Ids, number: int | None) -> str:
    which = "" if number is None else f"{number}: "
    means = [sum(getattr(t, name) for t in view) / max(1, len(view)) for name in ("reverse_kl", "forward_kl")]
    return (
        f"{which}student {len(view)} tokens, teacher {len(response)}; on the student's text reverse KL "
        f"{means[0]:.3g} and forward KL {means[1]:.3g} nats a token"
    )


def _legend() -> Text:
    parts = [Text("reverse KL, nats: ", style="dim")]
    for depth, bound in enumerate(LEVELS["reverse_kl"], 1):
        parts += [Text(f" ≥ {bound:g} ", style=_style(depth)), Text(" ")]
    return Text.assemble(*parts)
