"""Several workers on one machine: the collectives with a group of one, and what becomes of the loss of a peer.

NCCL refuses two ranks on one GPU unless they seem to be on two hosts (NCCL_HOSTID); they then talk over sockets.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from unittest.mock import patch

import torch.distributed as dist

from checks.check import Bar, Check, Failed, Figures, Machine
from checks.steps import OurStep, cifar, relative_error
from simclr_ray import collective

LIMIT_S = 60.0
RAISED = "a bug of rank 1"


def one_rank(machine: Machine) -> Figures:
    """A step whose collectives all run, in a group of one, against the same step without a group."""
    config = cifar(machine, **{"train.precision": "float64"})
    alone = OurStep(config, machine.device, compiled=False)
    alone()
    with TemporaryDirectory() as folder, patch.object(collective, "alone", lambda: False):
        _join(Path(folder), 0, 1, machine)
        grouped = OurStep(config, machine.device, compiled=machine.on_gpu)
        grouped()
        dist.destroy_process_group()
    return Figures(ours=relative_error(grouped.gradients(), alone.gradients()))


def _join(folder: Path, rank: int, size: int, machine: Machine) -> None:
    """torch.distributed's default group, as workers on GPUs form it."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    backend = "cpu:gloo,cuda:nccl" if machine.on_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=size)


def lost_peer(machine: Machine) -> Figures:
    """Seconds from the end of one of two workers to the end of both with its cause known, as Ray brings it about: the
    first process that ends has the others ended. The longer one of an exception and of a SIGKILL."""
    found = {}
    for ending in (_raise, _be_killed):
        with TemporaryDirectory() as folder:
            found[ending.__name__.strip("_")] = _seconds_of_an_end(ending, Path(folder), machine)
    note = ", ".join(f"{name.replace('_', ' ')}: {seconds:.2f} s" for name, seconds in found.items())
    return Figures(ours=max(found.values()), note=note, details=found)


def _raise() -> None:
    raise ValueError(RAISED)


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _seconds_of_an_end(ending: Callable[[], None], folder: Path, machine: Machine) -> float:
    context = multiprocessing.get_context("fork")  # this process has not used the GPU
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [
        context.Process(target=_worker, args=(rank, ending, folder, machine, pipes[rank][1])) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    try:
        ended = wait([worker.sentinel for worker in workers], LIMIT_S)
        if workers[1].sentinel not in ended:
            raise Failed(f"within {LIMIT_S:.0f} s {len(ended)} workers ended, and not the one that was to")
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    seconds = time() - float((folder / "ending").read_text())
    cause = pipes[1][0].recv() if pipes[1][0].poll() else f"signal {-(workers[1].exitcode or 0)}"
    if RAISED not in cause and cause != f"signal {signal.SIGKILL:d}":
        raise Failed(f"the worker ended by something else: {cause.strip().splitlines()[-1]}")
    return seconds


def _worker(rank: int, ending: Callable[[], None], folder: Path, machine: Machine, pipe: Connection) -> None:
    """Trains until rank 1 ends in the middle of a step, while rank 0 waits for it in a collective."""
    os.environ["NCCL_HOSTID"] = f"host-{rank}"
    try:
        _join(folder, rank, 2, machine)
        step = OurStep(cifar(machine), machine.device, compiled=False, workers=2)
        step()
        collective.wait_for_all()
        if rank == 1:
            (folder / "ending").write_text(str(time()))
            with patch.object(collective, "sum_gradients", lambda parameters: ending()):
                step()
        step()
        collective.wait_for_all()
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


CHECKS = (
    Check(
        run=one_rank,
        claim="error of a float64 step's gradients with its collectives, in a group of one",
        bar=Bar(most=1e-9),
        limit_s=120,
    ),
    Check(
        run=lost_peer,
        claim="seconds from a worker's exception or SIGKILL to the end of both, its cause known",
        bar=Bar(most=10.0),
        limit_s=120,
    ),
)
