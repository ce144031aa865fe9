"""Memory of a training process: freed memory is kept between steps on a CPU; out of memory on a GPU names settings."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simclr_ray.config import BadInput
from simclr_ray.data.order import Order

CONTEXT_BYTES = 600 << 20
"""Of a GPU's memory, what CUDA and its libraries take in each process besides tensors (assumed)."""


class TooLittleMemory(BadInput):
    """Training does not fit into an accelerator."""

    workers = 0
    """How many shared the pass that did not fit; 0: it is no pass, and more workers would not help."""


def keep_freed_memory() -> None:
    """Lets glibc reuse a step's tensors: it would map and unmap each, and page faults made a CPU step 1.6x slower."""
    trim_threshold, mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


def limit_memory(part: float, device: torch.device) -> None:
    """Keeps this process to its part of a GPU that it shares: it fails, and not its neighbour, if it needs more."""
    if device.type == "cuda" and part < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, part - CONTEXT_BYTES / total), device.index)


def free_cached_memory() -> None:
    """Gives a GPU's memory that no tensor uses any more back to the other processes on it."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def naming_too_little_memory(order: Order, workers: int, device: torch.device, part: float) -> Iterator[None]:
    """For training on a share of each pass: turns the accelerator's out-of-memory error into TooLittleMemory.

    `part`: what a worker has of its device, at most 1.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        shared = part < 1
        more = "raise resources.gpus_per_worker" if shared else "set resources.min_workers to a number that fits"
        named = TooLittleMemory(
            f"a pass of {order.pass_size} images over {workers} workers does not fit into "
            f"{f'{part:g} of ' if shared else ''}the memory of {device} ({_first_line(error)}): {more}, or set "
            f"train.pass_size to a smaller divisor of {order.global_batch} under another --name"
        )
        named.workers = workers
        raise named from None


def too_few_workers(error: BaseException) -> int:
    """Over how many workers a pass did not fit; 0 for any other error."""
    return error.workers if isinstance(error, TooLittleMemory) else 0


@contextmanager
def naming_too_large_check() -> Iterator[None]:
    """The same for the check during training."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLittleMemory(
            f"the check during training does not fit into the accelerator's memory ({_first_line(error)}): lower "
            "evaluate.bank_rows, or set evaluate.method rankme or evaluate.every_epochs 0, under another --name"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
