"""Real worker processes on this machine: a gloo group of any size, started from a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TIMEOUT_S = 240.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "simclr_ray.train.attempt"])


def run_workers(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Runs `function(*arguments)` in `size` processes of one group; returns their results in rank order.

    `function` must be at module level. The first exception of any process is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            _context.Process(target=_main, args=(rank, size, Path(folder) / "group", pipe[1], function, arguments))
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


def _main(rank: int, size: int, meeting: Path, pipe: Connection, function: Callable, arguments: tuple) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        # As bytes: torch would send a tensor as a handle into this process, which may have ended by then.
        pipe.send_bytes(pickle.dumps((True, function(*arguments))))
        dist.barrier()  # a process must not exit while another still communicates with it
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 (whatever it was, the parent raises it)
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
