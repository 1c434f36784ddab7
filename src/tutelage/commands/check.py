"""`tutelage check`: look at a recipe before the run, without reading any weights."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data import Example, Examples
from tutelage.evaluation.generated import answer_reader
from tutelage.models.head import output_head
from tutelage.models.loading import load_tokenizer, stop_ids
from tutelage.models.skeleton import load_skeleton
from tutelage.models.vocabulary import shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.training.memory import estimate
from tutelage.training.setup import (
    check_text,
    describe_counts,
    needs_teacher,
    read_texts,
    student_tokenizer,
    total_steps,
)

_ROWS = 3
_TOKENS = 400  # of a row that is shown


def check(recipe: Recipe, console: Console | None = None) -> None:
    """Print what a run of this recipe would be.

    Raises:
        InputError: something is wrong with it; the run would say the same.
    """
    console = console or Console(highlight=False)
    tokenizer = student_tokenizer(recipe)
    teacher = None
    if recipe.teacher is not None and needs_teacher(recipe):
        teacher = load_skeleton(recipe.teacher, "teacher")
    student = load_skeleton(recipe.student, "student", tokenizer=tokenizer, teacher=teacher)
    stops = stop_ids(student, tokenizer)
    answer_reader(recipe.evaluation.answer)
    texts = read_texts(recipe, tokenizer, stops, bool(student.config.is_encoder_decoder))
    check_text(recipe, texts.train)
    batch = recipe.train.batch_size
    steps = total_steps(recipe, len(texts.train))
    epochs = steps * batch / len(texts.train) / recipe.method.plan.inner_epochs

    console.print(Text(f"method   {recipe.method.name}, {steps:,} steps of {batch} rows ({epochs:.2f} epochs)"))
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            console.print(Text(f"{name}  {_sizes(model)}"))
    if teacher is not None and recipe.teacher is not None:
        own = load_tokenizer(recipe.teacher, "teacher")
        shared = shared_vocabulary(tokenizer, own, output_head(student).vocabulary, output_head(teacher).vocabulary)
        console.print(Text(f"vocabulary  {shared.size:,} shared ids" + (f"; {shared.note}" if shared.note else "")))
    names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in stops)
    console.print(Text(f"a response ends at  {names}"))
    console.print(Text(f"rows     {describe_counts('training', texts.train)}; {_lengths(texts.train)}"))
    if texts.validation is not None:
        console.print(Text(f"         {describe_counts('validation', texts.validation)}"))
    _show_rows(console, texts.train, tokenizer)
    console.print(_memory_table(recipe, student, teacher, texts.train))
    console.print(Text("nothing was trained; the recipe is ready for: tutelage train"))


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
