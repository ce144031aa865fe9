"""Memory of a training process: freed memory is kept between steps on a CPU; out of memory on a GPU names settings."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simclr_ray.config import BadInput
from simclr_ray.data.order import Order


class TooLittleMemory(BadInput):
    """A pass does not fit into an accelerator."""


def keep_freed_memory() -> None:
    """Lets glibc reuse a step's tensors: it would map and unmap each, and page faults made a CPU step 1.6x slower."""
    trim_threshold, mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


@contextmanager
def naming_too_little_memory(order: Order, workers: int, device: torch.device) -> Iterator[None]:
    """Turns the accelerator's out-of-memory error into TooLittleMemory, which names the setting to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLittleMemory(
            f"a pass of {order.pass_size} images over {workers} workers does not fit into the memory of {device} "
            f"({str(error).splitlines()[0]}): set resources.min_workers to a number that fits, or train.pass_size to a "
            f"smaller divisor of {order.global_batch} under another --name"
        ) from None
