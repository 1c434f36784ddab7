"""The Triton kernel without a device: its meaning in Triton's interpreter, and that it compiles for one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is for Linux only")

POINTERS = {"divergences": "*fp32", "student_logps": "*fp32", "teacher_logps": "*fp32", "targets": "*i64"}
NUMBERS = ("student_scale", "teacher_scale", "student_softcap", "teacher_softcap", "temperature")
OPTIONAL = (
    "student_bias", "teacher_bias", "student_softcap", "teacher_softcap", "coefficients", "targets", "cross_entropy",
    "student_logps", "teacher_logps",
)  # fmt: skip


def test_its_meaning_is_that_of_the_way_in_blocks() -> None:
    """In a process of its own, for the interpreter has to be chosen before the kernel is imported."""
    tests = Path(__file__).with_name("interpreted_triton.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=tests.parents[2]
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


@pytest.mark.parametrize(("form", "bare"), [("forward_kl", True), ("jsd", False)])
def test_it_compiles_for_a_device(form: str, bare: bool) -> None:
    """With everything, and with all that is optional left out."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tutelage.losses.triton_pointwise import _pointwise

    constants = {"FORM": form, "WRITE_SLOPE": True, "BLOCK": 4096, **(dict.fromkeys(OPTIONAL) if bare else {})}
    types = {**dict.fromkeys(_pointwise.arg_names, "*bf16"), "vocabulary": "i32", **POINTERS}
    types |= {**dict.fromkeys(NUMBERS, "fp32"), "coefficients": "*fp64", "cross_entropy": "*fp64"}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=_pointwise, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
