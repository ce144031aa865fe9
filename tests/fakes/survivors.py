"""Faults that a run survives: gloo worker processes with a coordinator, which go on without those that die.

The script says who dies, freezes or is sent away, where and at which step; the supervisor starts others in their place.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from simclr_ray import collective
from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import Positions, order_of
from simclr_ray.membership import coordinator, member
from simclr_ray.membership.coordinator import Coordinator
from simclr_ray.membership.member import Address, Fenced, Member
from simclr_ray.methods.method import Method
from simclr_ray.storage.location import Location, open_location
from simclr_ray.train import attempt, committed, generations, step
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.control import ClusterSignals, Left
from simclr_ray.train.worker import LocalWorker
from small_runs import local_blocks
from worker_processes import worker_context

Point = Literal["batch", "gradients", "form", "share", "save", "evaluation", "log"]
TIMEOUT_S = 240.0
FENCED, LEFT = 4, 5
ALL_JOINED = 1000
"""Added to a fault's number: the mark that the workers in the place of its lost ones have come."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """From `step` on, the workers `ranks` die at the next `point`, or freeze there, or are sent away by a notice."""

    step: int
    point: Point = "gradients"
    ranks: tuple[int, ...] = (0,)
    how: Literal["killed", "frozen", "noticed"] = "killed"
    others: int = 0
    """Workers that are started in their place, once they are gone."""


@dataclass(frozen=True)
class _Script:
    """Which of the faults have happened is kept in a folder, as no process survives all of them."""

    losses: Sequence[Loss]
    folder: Path

    def marks(self, number: int) -> list[str]:
        return [path.name for path in self.folder.glob(f"{number}-*")]

    def due(self, step: int) -> Iterator[tuple[int, Loss]]:
        """The faults of this step, in order; one begins only after those before it have happened."""
        for number, loss in enumerate(self.losses):
            if loss.step > step:
                return
            if len(self.marks(number)) < len(loss.ranks):
                yield number, loss
                if loss.point not in ("form", "share"):
                    return

    def wait_for_others(self, ours: Member) -> None:
        """Called by rank 0 after each step: a run this small would be over before others have started."""
        started = ours.slots
        for number, loss in enumerate(self.losses):
            others = {f"worker-{started + other}" for other in range(loss.others)}
            started += loss.others
            happened = len(self.marks(number)) == len(loss.ranks)
            if others and happened and not self.marks(number + ALL_JOINED):
                _until(lambda o=others: ours.waiting >= len(o) or o.intersection(ours.names), [], "others joined")
                self.mark(number + ALL_JOINED, 0)

    def mark(self, number: int, rank: int) -> bool:
        """Whether it has not happened to this rank before."""
        try:
            (self.folder / f"{number}-{rank}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class _Worker(LocalWorker):
    script: _Script = field(kw_only=True)

    def poll_signals(self) -> ClusterSignals:
        assert self.member is not None
        self.script.wait_for_others(self.member)
        signals = ClusterSignals(joining=self.member.waiting)
        for _, loss in self.script.due(_now.step):
            if loss.how == "noticed":
                return replace(signals, deadline=0.0, nodes=("this",), leaving=loss.ranks)
        return signals


class _Now:
    step = 0
    rank = 0


_now = _Now()


def survive(
    config: Config,
    dataset: Dataset,
    folder: Path,
    workers: int,
    losses: Sequence[Loss],
    *,
    wait_s: float = 0.0,
    frozen_s: float = 10.0,
) -> dict[int, int]:
    """Runs to the end with all the losses; returns the exit code of each process by its number."""
    marks = folder.parent / f"{folder.name}-marks"
    marks.mkdir()
    script = _Script(losses, marks)
    coordinator.FROZEN_S = frozen_s
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    leader = Coordinator(wait_s=wait_s, start_wait_s=5.0)
    address = Address(host="127.0.0.1", port=leader.port, token=leader.token, store=f"127.0.0.1:{store.port}")
    processes: list[Any] = []

    def start(count: int) -> None:
        for _ in range(count):
            arguments = (len(processes), address, workers, config, dataset, folder, script, frozen_s)
            processes.append(worker_context().Process(target=_main, args=arguments))
            processes[-1].start()

    start(workers)
    try:
        for number, loss in enumerate(losses):
            _until(lambda n=number, ranks=loss.ranks: len(script.marks(n)) == len(ranks), processes, f"{loss}")
            start(loss.others)
        _until(lambda: not any(process.is_alive() for process in _awake(processes)), processes, "the end")
        for process in processes:
            if process.is_alive():  # frozen: the others are done, and it wakes
                os.kill(process.pid, signal.SIGCONT)
        for process in processes:
            process.join(TIMEOUT_S)
        return {number: process.exitcode for number, process in enumerate(processes)}
    finally:
        coordinator.FROZEN_S = 10.0
        for process in processes:
            process.kill()
        leader.close()


def _awake(processes: list[Any]) -> list[Any]:
    return [process for process in processes if process.is_alive() and not _stopped(process.pid)]


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False


def _until(condition: Callable[[], Any], processes: list[Any], what: str) -> None:
    begin = monotonic()
    while not condition():
        assert monotonic() - begin < TIMEOUT_S, f"{what} did not happen: {[p.exitcode for p in processes]}"
        assert all(p.exitcode in (None, 0, -signal.SIGKILL, FENCED, LEFT) for p in processes), "a worker failed"
        if processes and all(process.exitcode == 0 for process in processes):
            assert condition(), f"the run ended without {what}"
        sleep(0.05)


def _main(
    number: int,
    address: Address,
    slots: int,
    config: Config,
    dataset: Dataset,
    folder: Path,
    script: _Script,
    frozen_s: float,
) -> None:
    torch.set_num_threads(1)
    member.FROZEN_S = frozen_s
    ours = Member(address, f"worker-{number}", slots)
    worker = _Worker(torch.device("cpu"), member=ours, script=script)
    _die_by(script, ours)

    def blocks(positions: Positions) -> Iterator[dict[str, np.ndarray]]:
        order = order_of(config, dataset)
        slices = len(order.worker_positions(0, 1, worker.rank, worker.size))
        _now.rank = worker.rank
        first = config.train.epochs * order.steps_per_epoch - len(positions) // slices
        for served, block in enumerate(local_blocks(config, dataset, positions, slices)):
            _now.step = first + served
            _at(script, "batch", worker.rank)
            yield block

    def evaluate(model: Method, step: int, check_control: Callable[[], None]) -> dict[str, float]:
        check_control()
        _at(script, "evaluation", worker.rank)
        total = torch.stack([value.detach().double().abs().sum() for value in model.encoder.parameters()]).sum()
        return {"rankme": float(collective.sum_over_workers(total)) / worker.size}

    try:
        run_attempt(config, dataset, open_location(str(folder)), worker, blocks, evaluate=evaluate)
    except Left:
        os._exit(LEFT)
    except Fenced:
        os._exit(FENCED)
    os._exit(0)


def _at(script: _Script, point: Point, rank: int) -> None:
    for number, loss in script.due(_now.step):
        if loss.point == point and loss.how != "noticed" and rank in loss.ranks and script.mark(number, rank):
            os.kill(os.getpid(), signal.SIGKILL if loss.how == "killed" else signal.SIGSTOP)
            return


def _die_by(script: _Script, ours: Member) -> None:
    """Puts the faults where they shall happen."""
    sum_gradients, form_group, share = collective.sum_gradients, generations.form_group, committed.Committed.share
    write_bytes, leave, recorder = Location.write_bytes, ours.leave, attempt.RunLog.metrics

    def gradients(parameters: Any) -> None:
        _at(script, "gradients", collective.rank())
        sum_gradients(parameters)

    def form(store: str, name: str, rank: int, *rest: Any) -> Any:
        _at(script, "form", rank)
        return form_group(store, name, rank, *rest)

    def shared(self: committed.Committed, generation: Any) -> None:
        _at(script, "share", generation.rank)
        share(self, generation)

    def written(self: Location, content: bytes, **kwargs: Any) -> None:
        if Path(self.path).parent.name.startswith("step-"):
            _at(script, "save", _now.rank)
        write_bytes(self, content, **kwargs)

    def left(*, finished: bool = False) -> None:
        if not finished:
            for number, loss in script.due(_now.step):
                if loss.how == "noticed":
                    script.mark(number, _now.rank)
        leave(finished=finished)

    def logged(self: Any, row: Any) -> None:
        _at(script, "log", _now.rank)
        recorder(self, row)

    step.collective.sum_gradients = gradients
    generations.form_group = form
    committed.Committed.share = shared  # type: ignore[method-assign]
    Location.write_bytes = written  # type: ignore[method-assign, assignment]
    ours.leave = left  # type: ignore[method-assign]
    attempt.RunLog.metrics = logged  # type: ignore[method-assign]
