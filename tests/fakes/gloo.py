"""Real worker processes on this machine: a gloo group of any size, started from a server that has imported torch."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch
import torch.distributed as dist

from simclr_ray import collective
from simclr_ray.group.gloo import form_group
from worker_processes import worker_context

TIMEOUT_S = 240.0


def run_workers(
    size: int, function: Callable[..., Any], *arguments: Any, group: Literal["ours", "torch"] = "ours"
) -> list[Any]:
    """Runs `function(*arguments)` in `size` processes of one group; returns their results in rank order.

    `function` must be at module level. The first exception of any process is raised here. `group`: as processes on
    CPUs form it, or torch.distributed's default group, as on GPUs.
    """
    context, store = worker_context(), dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_main, args=(rank, size, store.port, group, pipe[1], function, arguments))
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        return _results([pipe[0] for pipe in pipes])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, timeout=TIMEOUT_S)
        if not ready:
            raise TimeoutError(f"workers {sorted(set(range(len(pipes))) - set(results))} did not answer")
        for pipe in ready:
            ok, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            if not ok:
                raise AssertionError(f"a worker failed:\n{value}")
            results[pipes.index(pipe)] = value  # type: ignore[arg-type]
    return [results[rank] for rank in range(len(pipes))]


def _main(rank: int, size: int, port: int, group: str, pipe: Connection, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    try:
        assert "worker_begun" in sys.modules, "the server of these processes was started by something else"
        if group == "torch":
            store = dist.TCPStore("127.0.0.1", port, is_master=False)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        else:
            join(port, rank, size)
        # As bytes: torch would send a tensor as a handle into this process, which may have ended by then.
        pipe.send_bytes(pickle.dumps((True, function(*arguments))))
        collective.wait_for_all()  # a process must not exit while another still communicates with it
        collective.end_default_group()
    except BaseException:  # noqa: BLE001 (whatever it was, the parent raises it)
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))


def join(port: int, rank: int, size: int) -> None:
    """Joins the group whose store listens on `port`."""
    collective.join_group(form_group(f"127.0.0.1:{port}", "group", rank, size, lambda: False, TIMEOUT_S))
