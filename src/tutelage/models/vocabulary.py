"""Whether two tokenizers mean the same by their ids, which token-level distillation takes for granted."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tutelage.errors import InputError

_SEEDS = (
    "The quick brown fox jumps over the lazy dog.",
    "Don't stop; it's 5 o'clock, isn't it? I'll say we've won!",
    "internationalisation antidisestablishmentarianism supercalifragilistic",
    "ALL CAPS, CamelCase, snake_case, kebab-case",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "tab\tand\t\ttabs",
    "line\nbreak\n\nand paragraph\n\n\n",
    "carriage\r\nreturn",
    "non-breaking\u00a0space and zero\u200bwidth",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159 -2.5e-10 1,000,000 50% $9.99 1/2",
    "2024-02-29T23:59:59Z",
    "def f(x):\n    return [i ** 2 for i in range(x)]\n",
    "if (a != b && c <= d) { return a[0]->next; }",
    "<html><body class=\"a b\">&amp;</body></html>",
    "SELECT * FROM t WHERE x = 'y' -- comment",
    "{\"key\": [1, 2.0, null, true]}",
    "https://example.org/a/b?c=d&e=%20#f",
    "user@example.com @handle #hashtag",
    "\\frac{a}{b} + \\sqrt{x_1^2} = \\alpha",
    "!?.,;:…—–-_()[]{}<>/\\|`~^*+=&%$#@\"'",
    "“curly” ‘quotes’ «guillemets» „low“",
    "naïve café résumé Ångström Straße",
    "cafe\u0301 (combining) ﬁ (ligature) ½ ² ™",
    "Größenwahn, Übermut, Äpfel",
    "Señor, ¿qué tal? ¡Olé!",
    "Zażółć gęślą jaźń",
    "Привет, как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界。今天天气很好。",
    "こんにちは世界、カタカナ",
    "안녕하세요 세계",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🇪🇺",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 \U0001f9ff",
    "a" * 30 + " " * 20 + "\n" * 5 + "=" * 40,
    "",
)  # fmt: skip
PROBE = tuple(
    dict.fromkeys(
        text
        for number, seed in enumerate(_SEEDS)
        for text in (seed, seed.upper(), seed.title(), f" {seed}", f"{seed}\n{_SEEDS[number - 1]}", seed[::-1])
    )
)
"""Texts that tokenizers with other merges, normalisation or pre-tokenisation cut differently: each seed as it is, in
other cases, behind a space, on a line before another seed, and backwards."""

ADDED = 50
"""How many added tokens are looked at inside a text, one by one."""

TEXT_ONLY = "have the teacher write text with `tutelage generate`, and train on it with sft"
OTHER_WAYS = f"distil with method cross-tokenizer, or {TEXT_ONLY}"


@dataclass(frozen=True)
class SharedVocabulary:
    """The ids on which student and teacher are compared.

    Attributes:
        size: the ids below this one are compared; logits of both are cut to it.
        note: what a user should know about it in one line, empty where everything is equal.
    """

    size: int
    note: str


def shared_vocabulary(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_rows: int,
    teacher_rows: int,
) -> SharedVocabulary:
    """Check that student and teacher mean the same by each id, and find the ids to compare them on.

    A vocabulary that is padded to a rounder size in one of the models, and tokens that only one of the
    two knows, are allowed and noted. Ids with other meanings would train on nonsense and are refused.

    Args:
        student_tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's tokenizer.
        student_rows: outputs of the student's head (padding included).
        teacher_rows: outputs of the teacher's head.

    Returns:
        The number of shared ids, and a note.

    Raises:
        InputError: an id stands for other strings, or the same text becomes other ids.
    """
    size = min(student_rows, teacher_rows)
    if student_tokenizer is teacher_tokenizer:
        return SharedVocabulary(size, _width_note(student_rows, teacher_rows, min(size, len(student_tokenizer))))
    student, teacher = _strings(student_tokenizer, size), _strings(teacher_tokenizer, size)
    shared = student.keys() & teacher.keys()
    _check_strings(student, teacher, sorted(shared))
    added = sorted(student_tokenizer.added_tokens_decoder.keys() & teacher_tokenizer.added_tokens_decoder.keys())
    within = [f"a {student[index]} b{student[index]}c" for index in added[:ADDED] if index in student]
    _check_probe(student_tokenizer, teacher_tokenizer, [*PROBE, *within])
    notes = (
        _width_note(student_rows, teacher_rows, len(shared)),
        _alone_note("student", student, teacher),
        _alone_note("teacher", teacher, student),
        _end_note(str(student_tokenizer.eos_token), str(teacher_tokenizer.eos_token)),
    )
    return SharedVocabulary(size, "; ".join(note for note in notes if note))


def _strings(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, str]:
    """What each id below `size` stands for."""
    return {index: token for token, index in tokenizer.get_vocab().items() if index < size}


def _check_strings(student: dict[int, str], teacher: dict[int, str], shared: Sequence[int]) -> None:
    if not shared:
        raise InputError(f"tokenizers differ: they have no id in common; {OTHER_WAYS}")
    other = [index for index in shared if student[index] != teacher[index]]
    if other:
        first = "; ".join(
            f"id {index} is {student[index]!r} for the student, {teacher[index]!r} for the teacher"
            for index in other[:3]
        )
        raise InputError(
            f"tokenizers differ: {len(other)} of {len(shared)} shared ids stand for other strings "
            f"(first: {first}); {OTHER_WAYS}"
        )


def _check_probe(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> None:
    """Equal maps can still cut text differently: other merges, normalisation, or spaces around added tokens."""
    for text in texts:
        student = student_tokenizer.encode(text, add_special_tokens=False)
        teacher = teacher_tokenizer.encode(text, add_special_tokens=False)
        if student != teacher:
            raise InputError(
                f"tokenizers differ: the same ids stand for the same strings, but {text!r} becomes "
                f"{shown(student)} for the student and {shown(teacher)} for the teacher; {OTHER_WAYS}"
            )


def shown(ids: Sequence[int]) -> str:
    """The start of a list of ids.

    >>> shown(range(12))
    '[0, 1, 2, 3, 4, 5, 6, 7, …]'
    """
    return f"[{', '.join(str(index) for index in ids[:8])}{', …' if len(ids) > 8 else ''}]"


def _width_note(student_rows: int, teacher_rows: int, shared: int) -> str:
    """What is done about heads of different widths.

    >>> _width_note(72, 64, 60)
    'vocabulary 72 (student) and 64 (teacher): same 60 tokens; logits sliced to the first 64 ids'
    >>> _width_note(64, 64, 60)
    ''
    """
    if student_rows == teacher_rows:
        return ""
    return (
        f"vocabulary {student_rows} (student) and {teacher_rows} (teacher): same {shared} tokens; "
        f"logits sliced to the first {min(student_rows, teacher_rows)} ids"
    )


def _alone_note(owner: str, own: dict[int, str], other: dict[int, str]) -> str:
    """Which tokens only one side has.

    >>> _alone_note("student", {0: "a", 1: "<tool>"}, {0: "a"})
    "1 token of the student only: '<tool>' (id 1)"
    """
    alone = sorted(own.keys() - other.keys())
    if not alone:
        return ""
    examples = ", ".join(f"{own[index]!r} (id {index})" for index in alone[:3])
    plural = "token" if len(alone) == 1 else "tokens"
    return f"{len(alone)} {plural} of the {owner} only: {examples}{', …' if len(alone) > 3 else ''}"


def _end_note(student: str, teacher: str) -> str:
    if student == teacher:
        return ""
    return f"end of sequence is {student} for the student, {teacher} for the teacher"
