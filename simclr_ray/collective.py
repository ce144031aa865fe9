"""Collectives over the training workers, and the only calls for rank and size; the identity with one worker.

The workers are those of the group that this process has joined (`join_group`), which can be left at any time, in the
middle of a collective too; or those of torch.distributed's default group, which lasts as long as its processes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from jaxtyping import Shaped
from torch import Tensor

from simclr_ray.group.gloo import GlooGroup

BUCKET_BYTES = 32 << 20
T = TypeVar("T")

_group: GlooGroup | None = None


def join_group(group: GlooGroup) -> None:
    """From now on the workers are those of this group."""
    global _group
    leave_group()
    _group = group


def leave_group() -> None:
    """Leaves the group that was joined, whatever is under way in it."""
    global _group
    left, _group = _group, None
    if left is not None:
        left.abandon()


def alone() -> bool:
    """Whether this process is the only worker: every collective is then the identity."""
    return size() == 1


def rank() -> int:
    if _group is not None:
        return _group.rank
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    if _group is not None:
        return _group.size
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_reduce(values: Tensor, op: Any = dist.ReduceOp.SUM) -> Callable[[], object]:
    """Starts an all-reduce in place; the result is there when the returned function returns."""
    if _group is not None:
        return _group.all_reduce(values, op)
    work = dist.all_reduce(values, op, async_op=True)
    assert work is not None
    return work.wait


def _all_gather(rows: Tensor) -> list[Tensor]:
    if _group is not None:
        return _group.all_gather(rows)
    received = [torch.empty_like(rows) for _ in range(size())]
    dist.all_gather(received, rows)
    return received


def _broadcast(values: Tensor, source: int) -> None:
    if _group is not None:
        _group.broadcast(values, source)
    else:
        dist.broadcast(values, source)


def gather_rows(rows: Shaped[Tensor, "n *d"], counts: Sequence[int]) -> Shaped[Tensor, "total *d"]:
    """All-gather: the rows of every worker in rank order, of which each holds `counts`; no gradient flows."""
    if alone():
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_all_gather(padded), counts, strict=True)])


def gather_counts(count: int) -> list[int]:
    """`count` of every worker, in rank order, over the CPU group."""
    if alone():
        return [count]
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = count
    _all_reduce(counts)()
    return counts.tolist()


def sum_over_workers(values: Tensor) -> Tensor:
    """The elementwise sum over all workers, in place and without gradient."""
    if not alone():
        _all_reduce(values)()
    return values


def summed(values: Tensor) -> Tensor:
    """The elementwise sum over several workers, in a new tensor; it works inside a compiled graph too."""
    if torch.compiler.is_compiling():
        if _group is not None:
            return _summed_in_graph(values)
        world = dist.group.WORLD
        assert world is not None
        return funcol.all_reduce(values.contiguous(), "sum", world)
    total = values.clone(memory_format=torch.contiguous_format)  # torch's functional one costs a detour through Python
    _all_reduce(total)()
    return total


@torch.library.custom_op("simclr_ray::summed", mutates_args=())
def _summed_in_graph(values: Tensor) -> Tensor:
    """Opaque to the compiler, which knows no group that is not torch.distributed's."""
    return summed(values)


@_summed_in_graph.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


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
    _all_reduce(word, dist.ReduceOp.MAX)()
    return word.tolist()


def wait_for_all() -> None:
    """A barrier, on the CPU group: it may take as long as a failing store is retried, which NCCL's timeout does not
    allow for."""
    maximum_over_workers([0])


def end_default_group() -> None:
    """Ends torch.distributed's default group, once all workers are here.

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
    content = _as_tensor(value)
    counts = gather_counts(len(content))
    parts = gather_rows(content, counts).split(counts)
    return [pickle.loads(part.numpy().tobytes()) for part in parts]


def from_rank_0(value: T) -> T:
    """Rank 0's value, on every worker."""
    return from_rank(0, value)


def from_rank(source: int, value: T) -> T:
    """The value of the worker `source`, on every worker."""
    if alone():
        return value
    content = _as_tensor(value)
    length = torch.tensor([len(content)])
    _broadcast(length, source)
    if rank() != source:
        content = torch.empty(int(length), dtype=torch.uint8)
    _broadcast(content, source)
    return pickle.loads(content.numpy().tobytes())


def _as_tensor(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replaces every gradient by its sum over workers.

    The buckets follow the order of the parameters and of their memory, so that the rounding of a step depends on the
    number of workers alone, not on when a process was started: DDP rebuilds its buckets after the first step, and a
    resumed run differs.
    """
    if alone():
        return
    pending = []
    for bucket in _buckets([_in_memory_order(each) for each in parameters if each.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        pending.append((bucket, flat, _all_reduce(flat)))
    for bucket, flat, wait in pending:
        wait()
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])


def _in_memory_order(parameter: Tensor) -> Tensor:
    """Its gradient, whose dimensions are sorted as the parameter's lie in memory, so on all workers alike."""
    assert parameter.grad is not None
    return parameter.grad.permute(sorted(range(parameter.dim()), key=parameter.stride, reverse=True))


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
