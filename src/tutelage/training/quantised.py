"""A run with quantised models: what has to fit."""

from tutelage.errors import InputError
from tutelage.models.loading import stored_method_at
from tutelage.models.sources import locate
from tutelage.recipe import Recipe


def check_quantised(recipe: Recipe) -> None:
    """Say before anything is loaded that a model is quantised which has to have all its bits.

    Raises:
        InputError: the student is, which learns; or the teacher, and it is to be copied from or cut.
    """
    student, teacher = recipe.student, recipe.teacher
    if student.model is not None:
        source = locate(student.model, "student", student.revision)
        stored = stored_method_at(source, student.trust_remote_code)
        if stored is not None:
            raise source.error(
                f"is stored quantised ({stored}), and a student learns with all bits of its weights, with an adapter "
                "too; name the model that it was made from"
            )
    if teacher is None or teacher.model is None or teacher.url is not None:
        return
    needing = {"student.from_teacher": student.from_teacher is not None, "train.shard": recipe.train.shard == "both"}
    for key in (key for key, needed in needing.items() if needed):
        source = locate(teacher.model, "teacher", teacher.revision)
        stored = teacher.quantize if teacher.quantize != "none" else stored_method_at(source, teacher.trust_remote_code)
        if stored is not None:
            advice = "name a student.model" if key == "student.from_teacher" else "use train.shard: student"
            raise InputError(
                f"the teacher is quantised ({stored}), and {key} needs the weights as they were; {advice}, or a "
                "teacher that is not quantised"
            )
