"""Collectives over the training workers, and the only calls for rank and size; the identity with one worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from jaxtyping import Shaped
from torch import Tensor

BUCKET_BYTES = 32 << 20
T = TypeVar("T")


def alone() -> bool:
    """Whether this process is the only worker: every collective is then the identity."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Shaped[Tensor, "n *d"], counts: Sequence[int]) -> Shaped[Tensor, "total *d"]:
    """All-gather: the rows of every worker in rank order, of which each holds `counts`; no gradient flows."""
    if alone():
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])


def gather_counts(count: int) -> list[int]:
    """`count` of every worker, in rank order, over the CPU group."""
    if alone():
        return [count]
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = count
    dist.all_reduce(counts)
    return counts.tolist()


def sum_over_workers(values: Tensor) -> Tensor:
    """The elementwise sum over all workers, in place and without gradient."""
    if not alone():
        dist.all_reduce(values)
    return values


def summed(values: Tensor) -> Tensor:
    """The elementwise sum over several workers, in a new tensor; it works inside a compiled graph too."""
    world = dist.group.WORLD
    assert world is not None
    if torch.compiler.is_compiling():
        return funcol.all_reduce(values.contiguous(), "sum", world)
    total = values.clone(memory_format=torch.contiguous_format)  # torch's functional one costs a detour through Python
    dist.all_reduce(total)
    return total


def sum_with_gradient(values: Tensor) -> Tensor:
    """The elementwise sum over all workers; the gradient of each term is the sum of every worker's for the sum."""
    return values if alone() else _SumOverWorkers.apply(values)


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


def maximum_over_workers(values: Sequence[int]) -> list[int]:
    """The elementwise maximum over all workers, on the CPU group, so without waiting for the accelerator."""
    if alone():
        return list(values)
    word = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(word, op=dist.ReduceOp.MAX)
    return word.tolist()


def wait_for_all() -> None:
    """A barrier, on the CPU group: it may take as long as a failing store is retried, which NCCL's timeout does not
    allow for."""
    maximum_over_workers([0])


def leave_group() -> None:
    """Ends the process group, once all workers are here.

    Not for the exception of one worker: NCCL's shutdown waits for kernels whose peers are in another collective, and
    the exception would not be seen until their timeout. Such a worker raises, and Ray ends the others.
    """
    if dist.is_available() and dist.is_initialized():
        wait_for_all()
        dist.destroy_process_group()


def gather_objects(value: T) -> list[T]:
    """Small Python values of every worker in rank order; pickled, so for rare events and not for every step."""
    if alone():
        return [value]
    received: list[Any] = [None] * size()
    dist.all_gather_object(received, value)
    return received


def from_rank_0(value: T) -> T:
    """Rank 0's value, on every worker."""
    if alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replaces every gradient by its sum over workers.

    The buckets follow the order of the parameters, so that the rounding of a step depends on the number of workers
    alone, not on when a process was started: DDP rebuilds its buckets after the first step, and a resumed run differs.
    """
    if alone():
        return
    pending = []
    for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in pending:
        work.wait()
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    filled = BUCKET_BYTES
    for gradient in gradients:
        if filled >= BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(gradient)
        filled += gradient.numel() * gradient.element_size()
    return buckets
