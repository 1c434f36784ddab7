"""`tutelage check`: look at a recipe before the run, without reading any weights, or with two steps of it."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.commands.dry_run import dry_run
from tutelage.commands.preflight import Findings, look
from tutelage.data import Example, Examples
from tutelage.models.head import output_head
from tutelage.recipe import Recipe
from tutelage.training.memory import estimate
from tutelage.training.setup import total_steps
from tutelage.training.texts import describe_counts

_ROWS = 3
_TOKENS = 400  # of a row that is shown


def check(recipe: Recipe, console: Console | None = None, *, two_steps: bool = False) -> None:
    """Print what a run of this recipe would be.

    Args:
        recipe: what to look at.
        console: where to print.
        two_steps: load the weights too, and make two steps in a folder that is taken away again.

    Raises:
        InputError: something is wrong with it; the run would say the same. All mistakes that do not follow from
            another are told at once.
    """
    console = console or Console(highlight=False)
    found = look(recipe)
    steps = total_steps(recipe, len(found.texts.train))
    _show_run(console, recipe, found, steps)
    _show_rows(console, found.texts.train, found.tokenizer)
    console.print(_memory_table(recipe, found.student, found.teacher, found.texts.train))
    if two_steps:
        _show_dry_run(console, recipe, steps)
    console.print(Text("nothing was trained; the recipe is ready for: tutelage train"))


def _show_run(console: Console, recipe: Recipe, found: Findings, steps: int) -> None:
    texts, batch = found.texts, recipe.train.batch_size
    epochs = steps * batch / len(texts.train) / recipe.method.plan.inner_epochs
    names = ", ".join(f"{found.tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in found.stops)
    lines = [f"method   {recipe.method.name}, {steps:,} steps of {batch} rows ({epochs:.2f} epochs)"]
    lines += [
        f"{name}  {_sizes(model)}{'' if adapter is None else f'; an adapter of rank {adapter.rank} learns'}"
        for name, model, adapter in (
            ("student", found.student, recipe.student.adapter),
            ("teacher", found.teacher, None),
        )
        if model is not None
    ]
    if found.shared is not None:
        note = f"; {found.shared.note}" if found.shared.note else ""
        lines.append(f"vocabulary  {found.shared.size:,} shared ids{note}")
    lines.append(f"a response ends at  {names}; {_ends(texts.train)}")
    lines.append(f"rows     {describe_counts('training', texts.train)}; {_lengths(texts.train)}")
    if texts.validation is not None:
        lines.append(f"         {describe_counts('validation', texts.validation)}")
    lines += [f"note     {note}" for note in found.notes]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _ends(examples: Examples) -> str:
    """How many responses teach the student to stop."""
    responses = [example for example in examples if example.response]
    if not responses:
        return "the data has no responses"
    trained = sum(example.mask[-1] for example in responses)
    return f"it is in the loss of {trained:,} of {len(responses):,} responses"


def _show_dry_run(console: Console, recipe: Recipe, steps: int) -> None:
    run = dry_run(recipe)
    console.print(Text("two steps with the real weights:"))
    for number, seconds in enumerate(run.seconds, 1):
        phases = ", ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items())
        console.print(Text(f"  step {number}: {phases}"))
    minutes = steps * run.step_seconds / 60
    together = f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    console.print(
        Text(
            f"  {steps:,} steps will take about {run.step_seconds:.2f} s each, {together} together, evaluations and "
            f"saves left out; peak memory {run.peak_bytes / 2**30:.2f} GiB"
        ),
        soft_wrap=True,
    )


def _sizes(model: PreTrainedModel) -> str:
    settings = model.config.get_text_config(decoder=True)
    count = sum(p.numel() for p in model.parameters())
    kind = "encoder-decoder" if model.config.is_encoder_decoder else "decoder-only"
    return (
        f"{model.config.model_type}, {kind}, {count / 1e6:,.2f} M parameters, {settings.num_hidden_layers} layers "
        f"of width {settings.hidden_size}, {output_head(model).vocabulary:,} ids"
    )


def _lengths(examples: Examples) -> str:
    prompts = sorted(len(e.prompt) for e in examples)
    responses = sorted(len(e.response) for e in examples)
    middle, last = len(prompts) // 2, len(prompts) - 1
    return (
        f"prompts of {prompts[middle]} tokens (median; at most {prompts[last]}), "
        f"responses of {responses[middle]} (at most {responses[last]})"
    )


def _show_rows(console: Console, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> None:
    console.print(Text.assemble("\nthree rows as the student sees them; ", ("in the loss", "black on green"), ":"))
    for example in examples.kept[:_ROWS]:
        console.print(Text(f"\n{example.where}", style="dim"))
        console.print(Text.assemble(*_pieces(example, tokenizer)), soft_wrap=True)
        if not example.response:
            console.print(Text("(prompt only: the method writes the response)", style="dim"))
    console.print()


def _pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str] | str]:
    """The tokens of a row, those in the loss coloured; a plain console gets them in ⟦ ⟧ as well."""
    prompt = example.prompt[-_TOKENS:]
    if len(prompt) < len(example.prompt):
        yield ("… ", "dim")
    yield str(tokenizer.decode(list(prompt)))
    run: list[int] = []
    inside = False
    for token, seen in [*zip(example.response[:_TOKENS], example.mask, strict=False), (None, None)]:
        if seen != inside or token is None:
            text = str(tokenizer.decode(run))
            if run:
                yield (f"⟦{text}⟧", "black on green") if inside else text
            run, inside = [], bool(seen)
        if token is not None:
            run.append(token)
    if len(example.response) > _TOKENS:
        yield (" …", "dim")


def _memory_table(
    recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel | None, examples: Examples
) -> Table:
    table = Table("memory (estimated)", "GiB", "lower it with", box=None, pad_edge=False)
    for part in estimate(recipe, student, teacher, examples):
        table.add_row(part.name, f"{part.gibibytes:.2f}", part.knob)
    return table
