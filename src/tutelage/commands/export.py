"""`tutelage export --gguf`: a finished student as a GGUF file, by llama.cpp's own converter, and read back."""

import subprocess
import sys
from pathlib import Path

import torch

from tutelage import config
from tutelage.commands.finished import finished_model
from tutelage.errors import InputError, TutelageError
from tutelage.models.loading import load_model

TYPES = {"f32": 1e-3, "f16": 0.05, "bf16": 0.05, "q8_0": None}
"""Types of the weights, each with the largest difference of a logit that is rounding, as a share of the largest."""
_SEVERAL = 24  # tokens of the probe


def export_gguf(run: str, *, converter: str, out: str | None = None, outtype: str = "f16") -> Path:
    """Write a finished student as one GGUF file, and compare its logits with the student's where they can be read.

    Args:
        run: folder of a run, or of a model.
        converter: path of `convert_hf_to_gguf.py` of llama.cpp, which is run with this Python.
        out: the file; by default `model-<type>.gguf` beside the model's folder.
        outtype: type of the weights.

    Returns:
        The file.

    Raises:
        InputError: there is no finished student or no converter, the student is an adapter, or the converter fails.
        TutelageError: the file computes something else.
    """
    folder, script = finished_model(run), Path(converter).expanduser()
    if not script.is_file():
        raise InputError(f"no converter at {script}; give the path of llama.cpp's convert_hf_to_gguf.py")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds an adapter; merge it with its base first (docs/adapters.md)")
    path = Path(out) if out else folder.parent / f"model-{outtype}.gguf"
    command = [sys.executable, str(script), str(folder), "--outfile", str(path), "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not path.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise InputError(f"the converter {script} left with status {done.returncode} and no {path.name}: {last}")
    print(f"wrote {path} ({path.stat().st_size / 2**20:,.1f} MiB); {_compared(folder, path, TYPES[outtype])}")
    return path


def _compared(folder: Path, path: Path, tolerance: float | None) -> str:
    """Say how far the file's logits are from the student's."""
    student = load_model(config.Model(model=str(folder), device="cpu"), "student", seed=0)
    try:
        copy = load_model(config.Model(model=str(path), device="cpu"), "student", seed=0)
    except InputError as error:  # transformers reads fewer architectures from GGUF than llama.cpp does
        return f"not read back: {error}"
    ids = torch.arange(_SEVERAL).reshape(1, -1) % student.config.get_text_config(decoder=True).vocab_size
    with torch.no_grad():
        here, there = (model(input_ids=ids, use_cache=False).logits.float() for model in (student, copy))
    size = min(here.shape[-1], there.shape[-1])
    difference, largest = (here - there)[..., :size].abs().max().item(), here.abs().max().item()
    if tolerance is not None and not difference <= tolerance * max(1.0, largest):
        raise TutelageError(
            f"{path} is not the student in {folder}: its logits differ by up to {difference:.2g} of {largest:.2g}; "
            "try a newer converter"
        )
    return f"read back, its logits differ by up to {difference:.2g} (the largest is {largest:.2g})"
