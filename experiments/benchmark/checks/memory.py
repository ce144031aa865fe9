"""Memory: NT-Xent of a huge batch, and a run that is refused the memory that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from checks.check import Bar, Check, Failed, Figures, Machine, Skip
from checks.feed import dataset_of, loaded
from checks.steps import IMAGENET_BATCH, imagenet
from simclr_ray.data.bridge import Block
from simclr_ray.methods.simclr import nt_xent
from simclr_ray.storage.location import open_location
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.memory import TooLittleMemory, limit_memory
from simclr_ray.train.worker import LocalWorker

GIB = 2**30
DIM = 128
CAP = 0.05


def nt_xent_memory(machine: Machine) -> Figures:
    """Forward and backward over N images; the peak besides their projections."""
    rows = machine.size(131_072, 2048)
    view_a, view_b = (torch.randn(rows, DIM, device=machine.device, requires_grad=True) for _ in range(2))
    nt_xent(view_a[:64], view_b[:64], 0.1).backward()  # what the device's libraries take at first use is not the loss's
    before = _start_of_peak(machine)
    nt_xent(view_a, view_b, 0.1).backward()
    peak = (_peak(machine) - before) / GIB
    matrix = (2 * rows) ** 2 * 4 / GIB
    return Figures(ours=peak, note=f"N = {rows:,}; one 2N x 2N matrix is {matrix:.3g} GiB", details={"matrix": matrix})


def out_of_memory(machine: Machine) -> Figures:
    """A run in a process with a part of the GPU that is too small: where it is refused more, in words that help."""
    if not machine.on_gpu:
        raise Skip("a process's memory on a CPU has no cap")
    limit_memory(CAP, machine.device)
    config = imagenet(machine).with_overrides({"resources.compile": False})
    with dataset_of(f"synthetic:{IMAGENET_BATCH}") as images, TemporaryDirectory() as folder:

        def blocks(positions: np.ndarray) -> Iterator[Block]:
            return loaded(config, images, positions, 1, cached=True)

        try:
            run_attempt(config, images, open_location(folder), LocalWorker(machine.device), blocks)
        except TooLittleMemory as error:
            part = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(machine.device).total_memory
            return Figures(ours=part, reference=CAP, note=str(error).partition(":")[0])
    raise Failed(f"a step of {IMAGENET_BATCH} images was not refused by a cap of {CAP} of the GPU's memory")


def _start_of_peak(machine: Machine) -> int:
    if machine.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM begins again at VmRSS
    return _status("VmRSS")


def _peak(machine: Machine) -> int:
    return torch.cuda.max_memory_allocated() if machine.on_gpu else _status("VmHWM")


def _status(key: str) -> int:
    """Bytes, by proc(5)."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


CHECKS = (
    Check(
        run=nt_xent_memory,
        claim="GiB at the peak of NT-Xent and its gradient, N = 131,072",
        bar=Bar(most=4.0),
        limit_s=120,
    ),
    Check(
        run=out_of_memory,
        claim="part of the GPU at which a capped run is refused more, against the cap",
        bar=Bar(most=1.0),
        limit_s=120,
    ),
)
