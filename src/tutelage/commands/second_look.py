"""A finished run looked at again, beside a teacher that it did not have in memory."""

from dataclasses import replace
from pathlib import Path

from tutelage.commands.finished import trained
from tutelage.config import Model
from tutelage.errors import InputError
from tutelage.models.pair import load_pair
from tutelage.models.pairing import positions
from tutelage.recipe import load_recipe
from tutelage.reports.run_record import parameters, read_record, write_record
from tutelage.reports.samples import Look, look_at
from tutelage.training.texts import Reader, encoded, new_tokens, rows_of


def look_again(folder: Path, teacher: str) -> None:
    """Have a run's student and a teacher answer the run's samples, and keep the answers for its report.

    Args:
        folder: of the run.
        teacher: folder or hub id of a model with the student's tokenizer.

    Raises:
        InputError: the run goes on or has no validation rows, or the teacher cannot be loaded or has another tokenizer.
    """
    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder} has no report.json, which a run leaves when it ends; give its command again first")
    recipe = load_recipe(folder / "config.yaml")
    rows = rows_of(recipe, "validation")
    pair = load_pair(trained(folder, recipe), Model(model=teacher, device=recipe.student.device), recipe.seed)
    assert pair.teacher is not None
    student, writer, config = pair.student, pair.teacher.model, recipe.evaluation
    reader = Reader(
        pair.tokenizer, student.stop_ids, student.is_encoder_decoder, positions(student.model, writer.model)
    )
    examples = encoded(recipe, rows, reader, new_tokens(recipe, training=False))
    look = Look(config.decoding, config.samples, recipe.train.micro_batch_tokens, recipe.seed, pair.vocabulary)
    samples = tuple(look_at(student, pair.teacher, writer, examples.kept, pair.tokenizer, look))
    write_record(folder, replace(record, teacher_parameters=parameters(writer.model), samples=samples, note=""))
