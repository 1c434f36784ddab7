"""`tutelage cache`: have the teacher read a recipe's fixed text before the run, and repair what is damaged."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from tutelage.errors import InputError
from tutelage.models.head import output_head
from tutelage.models.loading import device_of, stop_ids
from tutelage.models.pairing import positions
from tutelage.models.skeleton import load_skeleton
from tutelage.models.vocabulary import shared_vocabulary
from tutelage.recipe import Recipe
from tutelage.training.disk import readable
from tutelage.training.fixed_text import check_cache, fixed_text
from tutelage.training.setup import check_text, student_tokenizer
from tutelage.training.teacher_cache import TeacherAtHand, TeacherCache
from tutelage.training.texts import Reader, read_texts
from tutelage.world import joined, world


def cache(recipe: Recipe) -> None:
    """Capture what the teacher says of the recipe's fixed text; `train` with the same recipe then reads it.

    What is captured already is kept, what is damaged is captured anew. The student's weights are not read. It may be
    ended at any moment: all shards but those in progress stay. Processes that torchrun started share the work.

    Args:
        recipe: with a `teacher_cache.kind`.

    Raises:
        InputError: the recipe has no kind of cache or no fixed text, the folder holds other scores, or the disk is
            too small.
    """
    if recipe.teacher_cache.kind is None or recipe.teacher is None:
        raise InputError("the recipe keeps nothing of its teacher: add --teacher-cache.kind hidden (or top-k)")
    check_cache(recipe)
    with joined():
        _cache(recipe)


def _cache(recipe: Recipe) -> None:
    assert recipe.teacher is not None
    tokenizer = student_tokenizer(recipe)
    teacher = TeacherAtHand(recipe, device_of(recipe.student.device, "student"))
    student = load_skeleton(recipe.student, "student", tokenizer=tokenizer, teacher=teacher.model)
    stops, both = stop_ids(student, tokenizer), bool(student.config.is_encoder_decoder)
    texts = read_texts(recipe, Reader(tokenizer, stops, both, positions(student, teacher.model)))
    check_text(recipe, texts.train)
    rows = output_head(student).vocabulary, output_head(teacher.model).vocabulary
    vocabulary = shared_vocabulary(tokenizer, teacher.tokenizer, *rows).size
    with _bar() as bar:
        found = TeacherCache(
            recipe, teacher, vocabulary, lambda line: bar.console.print(line, soft_wrap=True), repair=True
        )
        text = fixed_text(recipe, texts, lambda: teacher.local().model, vocabulary)
        before = found.capture(text)
        task = bar.add_task("tokens", total=before.tokens, completed=before.tokens - before.missing_tokens)
        found.complete(text, lambda more: bar.advance(task, more))
    if world().is_main:
        print(f"{before.rows:,} rows, {before.tokens:,} tokens, {readable(found.store.size)} in {found.folder}")


class _Rate(ProgressColumn):
    """Tokens a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(quiet=not world().is_main),
    )
