"""Our training step on a fixed batch, without Ray. cpu.py starts it for this checkout, and for another one too.

    PYTHONPATH=CHECKOUT python experiments/benchmark/our_step.py [--width 0.25] [--processes 2]

The package is that of the checkout (of this layout or a later one), so `our_step` alone uses it, and only what both
share. Prints a JSON line: images/s, the parameters of the encoder, and the shares of the step's parts.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import tyro

from simclr_ray import collective
from simclr_ray.recipes import cifar10_rn18_200ep
from simclr_ray.train import step as step_module
from simclr_ray.train.memory import keep_freed_memory
from simclr_ray.train.state import TrainState, initial_state
from step_rate import images_per_s, warmed_up

Step = Callable[[], object]
PARTS: tuple[tuple[Any, str], ...] = (
    (step_module, "normalise"),
    (torch.Tensor, "backward"),
    (collective, "sum_gradients"),
)
"""Functions that the step calls by these names; the forward, the loss and the optimizer join them."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    width: float = 0.25
    batch: int = 256
    """Over all processes."""
    precision: str = "float32"
    processes: int = 1
    threads: int = 1
    """Of torch in each process."""
    seconds: float = 10.0


def main(arguments: Arguments) -> None:
    with TemporaryDirectory() as folder:
        if arguments.processes == 1:
            run(0, arguments, folder)
        else:
            torch.multiprocessing.spawn(run, (arguments, folder), nprocs=arguments.processes)


def run(rank: int, arguments: Arguments, folder: str) -> None:
    """One process; `folder` is where they find each other."""
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as a training worker does on a CPU
    if arguments.processes > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=arguments.processes)
        _join_as_workers_do(rank, arguments.processes)
    parts = Parts()
    step, encoder_parameters = our_step(arguments, rank, parts)
    steps = [warmed_up(step, arguments.seconds)]
    if arguments.processes > 1:
        dist.broadcast_object_list(steps)
    parts.seconds.clear()
    rate = images_per_s(step, steps[0], arguments.batch)
    if rank == 0:
        print(json.dumps({"images_per_s": rate, "encoder_parameters": encoder_parameters, "shares": parts.shares()}))
    if arguments.processes > 1:
        dist.destroy_process_group()


def _join_as_workers_do(rank: int, size: int) -> None:
    """Into a group of ours, which CPU workers train in; a checkout of before trains in the default group."""
    try:
        from simclr_ray.group.gloo import form_group
    except ImportError:
        return
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = [store.port if store else 0]
    dist.broadcast_object_list(port)
    collective.join_group(form_group(f"127.0.0.1:{port[0]}", "step", rank, size, lambda: False, 60.0))
    dist.barrier()  # the store is there until all have joined


def our_step(arguments: Arguments, rank: int, parts: Parts) -> tuple[Step, int]:
    """The recipe's step on random pixels, its parts timed; and the number of parameters of its encoder."""
    own = {"model.width": arguments.width, "train.global_batch": arguments.batch}
    config = cifar10_rn18_200ep().with_overrides(own | {"train.precision": arguments.precision})
    device, rows = torch.device("cpu"), _rows_per_process(arguments.batch, arguments.processes)
    views = torch.randint(0, 256, (rows[rank], 2, 32, 32, 3), dtype=torch.uint8)
    state = initial_state(config, device)
    for owner, name in PARTS:
        setattr(owner, name, parts.timed(name, getattr(owner, name)))
    state.optimizer.step = parts.timed("optimizer", state.optimizer.step)  # type: ignore[method-assign]
    mean, std = config.data.mean, config.data.std
    forward = step_module.forward_of(state.model, mean, std, arguments.precision, device, compiled=False)
    forward = parts.timed("forward", forward)
    state.model.loss = parts.timed("loss", state.model.loss)  # type: ignore[method-assign]

    commit = parts.timed("commit", _commit(state))

    def step() -> None:
        step_module.training_step(state.model, forward, state.optimizer, views, passes=1, rows_per_worker=rows)
        commit()

    return parts.timed("rest", step), sum(p.numel() for p in state.model.encoder.parameters())


def _commit(state: TrainState) -> Callable[[], object]:
    """The copy that a worker keeps of each step, in case another is lost; a checkout of before keeps none."""
    try:
        from simclr_ray.train.committed import Committed
    except ImportError:
        return lambda: None
    committed = Committed(state, recoverable=True)
    return lambda: committed.commit(None)


def _rows_per_process(batch: int, processes: int) -> list[int]:
    return [batch // processes + (rank < batch % processes) for rank in range(processes)]


class Parts:
    """The seconds of named parts; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = perf_counter()
            result = call(*args, **kwargs)
            took = perf_counter() - start
            self.seconds[name] += took - self._inside.pop()
            self._inside[-1] += took
            return result

        return timed_call

    def shares(self) -> dict[str, float]:
        return {name: seconds / sum(self.seconds.values()) for name, seconds in self.seconds.items()}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
