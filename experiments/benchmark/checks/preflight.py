"""Whether the machine is fit for the other checks: compiler, headers, bf16; and what its device can do at best."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable
from os import environ
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor

from checks.check import Bar, Check, Failed, Figures, Machine
from checks.steps import relative_error, synchronised
from simclr_ray.train.precision import cpu_has_bf16

MODULE = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "built", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_built(void) { return PyModule_Create(&module); }
"""
H100_COPY_GB_S, H100_TFLOP_S = 3350.0, 989.0
"""Of the SXM card by its data sheet: memory bandwidth, and dense bf16 products."""
REPEATS = 10


def compiler(machine: Machine) -> Figures:
    """Triton builds a module like this one at the first compiled step."""
    compiler = environ.get("CC", "gcc")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise Failed(f"the headers of Python are missing ({headers}): install python3-dev")
    with TemporaryDirectory() as folder:
        source = Path(folder) / "built.c"
        source.write_text(MODULE)
        line = [compiler, source, "-O3", "-shared", "-fPIC", f"-I{headers.parent}", "-o", source.with_suffix(".so")]
        before = perf_counter()
        try:
            subprocess.run(line, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise Failed(f"no C compiler ({compiler}): install gcc and libc6-dev, or set CC") from None
        except subprocess.CalledProcessError as error:
            raise Failed(f"{compiler} failed: {error.stderr.strip().splitlines()[-1]}") from None
        return Figures(ours=perf_counter() - before, note=compiler)


def bf16(machine: Machine) -> Figures:
    """The error of a product of bf16 matrices: 8 bits of a mantissa, accumulated in float32."""
    one, other = (torch.randn(512, 512, device=machine.device).bfloat16() for _ in range(2))
    has = torch.cuda.is_bf16_supported(including_emulation=False) if machine.on_gpu else cpu_has_bf16()
    if machine.on_gpu and not has:
        raise Failed("this GPU has no instructions for bf16: set train.precision float32")
    error = relative_error(one @ other, one.cpu().double() @ other.cpu().double())
    return Figures(ours=error, note="" if has else "emulated: this CPU has no instructions for it")


def copy_rate(machine: Machine) -> Figures:
    source = torch.randn(machine.size(1 << 30, 1 << 22) // 4, device=machine.device)
    destination = torch.empty_like(source)
    seconds = _median_seconds(lambda: destination.copy_(source), machine)
    return Figures(ours=2 * source.nbytes / seconds / 1e9, reference=H100_COPY_GB_S)


def matrix_rate(machine: Machine) -> Figures:
    side = machine.size(8192, 256)
    one, other = (torch.randn(side, side, device=machine.device).bfloat16() for _ in range(2))
    seconds = _median_seconds(lambda: one @ other, machine)
    return Figures(ours=2 * side**3 / seconds / 1e12, reference=H100_TFLOP_S)


def _median_seconds(work: Callable[[], Tensor], machine: Machine) -> float:
    for _ in range(3):
        work()
    return median(synchronised(work, machine.device) for _ in range(REPEATS))


CHECKS = (
    Check(run=compiler, claim="seconds to build a module against Python.h", bar=Bar(most=30.0), limit_s=120),
    Check(run=bf16, claim="error of a bf16 product against float64", bar=Bar(most=0.01), limit_s=120),
    Check(
        run=copy_rate,
        claim="GB/s of a copy on the device, against an H100's data sheet",
        bar=Bar(least=0.7),
        limit_s=120,
        judged_on_cpu=False,
    ),
    Check(
        run=matrix_rate,
        claim="TFLOP/s of a bf16 product, against an H100's data sheet",
        bar=Bar(least=0.6),
        limit_s=120,
        judged_on_cpu=False,
    ),
)
