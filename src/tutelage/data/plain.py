"""Plain text for language-modelling terms: cut into rows of equal length."""

from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.data.lines import read_text
from tutelage.data.problems import Problems, refuse
from tutelage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plain_rows(source: str, tokenizer: "PreTrainedTokenizerBase", tokens: int) -> tuple[tuple[int, ...], ...]:
    """Read a text file and cut it into rows of `tokens` ids; a shorter rest at the end is left out.

    Args:
        source: a UTF-8 text file, also .gz.
        tokenizer: the student's.
        tokens: length of a row.

    Raises:
        InputError: the file cannot be read, or is shorter than one row.
    """
    path, problems = Path(source), Problems(source)
    if not path.is_file():
        raise InputError(f"no such file: {source} (data.text)")
    text = read_text(path, problems)
    refuse([problems])
    ids = tokenizer(text or "", add_special_tokens=False).input_ids
    rows = tuple(tuple(ids[start : start + tokens]) for start in range(0, len(ids) - tokens + 1, tokens))
    if not rows:
        raise InputError(f"{source} has {len(ids)} tokens, too few for one row of data.text_tokens = {tokens}")
    return rows
