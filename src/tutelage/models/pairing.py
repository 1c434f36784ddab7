"""A student beside its teacher: what both can do, and what is not wrong and yet worth a line."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage import config
from tutelage.models.loading import stop_ids


def positions(*models: PreTrainedModel | None) -> int | None:
    """How many tokens all of the models can look at: the smallest `max_position_embeddings` among them.

    Beyond it a model with learned positions fails, and one with rotary positions writes worse and worse without
    a word. Models without such an end (T5, ALiBi, recurrent ones) do not count.

    Args:
        models: the models; `None` for one that there is not.

    Returns:
        The number, `None` where none of the models has an end.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> positions(GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=8, n_head=1, n_layer=1, vocab_size=9)), None)
    64
    """
    found = [
        getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        for model in models
        if model is not None
    ]
    return fewest(*(number for number in found if isinstance(number, int) and number > 0))


def fewest(*lengths: int | None) -> int | None:
    """The smallest of the lengths that have an end; `None` where none has.

    >>> fewest(None, 64, 32), fewest(None)
    (32, None)
    """
    return min((length for length in lengths if length is not None), default=None)


def stop_note(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say which tokens end a response besides the tokenizer's own; `None` where there are no others."""
    stops = stop_ids(model, tokenizer)
    others = [index for index in stops if index != tokenizer.eos_token_id]
    if not others or tokenizer.eos_token_id is None:
        return None
    names = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)!r} ({index})" for index in others)
    return f"a response ends at {tokenizer.eos_token!r}, and by the model's own settings also at {names}"


def pair_notes(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Compare a student with its teacher: sizes, and the templates of their chats.

    Args:
        student: the student; a skeleton will do.
        teacher: the teacher; a skeleton will do.
        student_tokenizer: renders the rows for both.
        teacher_tokenizer: the teacher's own.

    Returns:
        A line each for a student that is larger than its teacher, and for chat templates that differ.
    """
    notes = []
    # What an adapter adds to the teacher's own weights makes no giant. Transformers knows of weights that share a byte.
    adapter = sum(p.numel() for name, p in student.named_parameters() if ".lora_" in name)
    small, large = student.num_parameters() - adapter, teacher.num_parameters()
    if small > large:
        notes.append(
            f"the student has {small:,} parameters and its teacher only {large:,}; are they the right way round?"
        )
    own, other = student_tokenizer.chat_template, teacher_tokenizer.chat_template
    if own is not None and own != other:
        theirs = "the teacher has none" if other is None else "the teacher's differs"
        notes.append(f"conversations are rendered by the student's chat template for both models; {theirs}")
    return notes


def same_weights_note(student: config.Model, teacher: config.Model) -> str | None:
    """Say that a student starts as its own teacher, which is seldom meant."""
    if student.model is None or teacher.model is None:
        return None
    if Path(student.model).expanduser().resolve() != Path(teacher.model).expanduser().resolve():
        return None
    if student.revision != teacher.revision or (isinstance(teacher, config.Teacher) and teacher.quantize != "none"):
        return None
    return f"student and teacher are the same model ({student.model}): their divergence begins at zero"
