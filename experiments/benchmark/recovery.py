"""What a lost, noticed, replaced or added machine costs: a real local cluster, a run on it, and faults one by one.

    python experiments/benchmark/recovery.py [--rounds 5] [--workers 2] [--quick] [--json FILE] [--against OTHER]

Each round: a worker is killed, and another takes its place; rank 0's likewise; a node is killed, and one is added; a
node is noticed and taken away, and one is added; all workers are killed at once. A pause is counted from the fault, or
after a notice from the end of training with that node, to the end of the next step, in which data are loaded again. Of
the parts, "detect" is from the kill to the end of the old group (the rest of a step included), "agree" until the next
one is agreed on, "form" its process group, "state" what newcomers are given. Nothing but the size of the run is set:
the waits are those that a user gets.
`--against` measures a checkout of before, too, in which every fault is a restart. With two cores for all nodes,
starting processes take theirs from the workers that train.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import sleep, time
from typing import Any

from ray.cluster_utils import Cluster

from checkout import HERE, environment
from simclr_ray.cli.command import parse, run_command
from simclr_ray.orchestrate.preemption.drain import drain_here
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row, read_rows
from training_processes import rank_0_of, training_processes

NODE_CPUS = 2
NOTICE_S = 20.0
TIMEOUT_S = 240.0
SETTINGS = """quickstart --name run --data.train synthetic:1024 --train.epochs 100000 --evaluate.every-epochs 0
--augment.size 16 --model.width 0.125 --train.global-batch 128 --logging.every-steps 1 --saving.every-s 15
--resources.cpus-per-worker 1.5 --resources.data-cpus 0.5 --resources.threads 1"""
KEYS = {
    "a worker killed": "kill_s",
    "rank 0 killed": "rank0_s",
    "a node killed": "node_s",
    "a node noticed": "notice_s",
    "a worker joins": "join_s",
    "the group grows": "growth_s",
    "all workers killed": "all_s",
    "the group starts again": "restart_s",
    "a new node is used": "arrival_s",
}
NOTICED, JOINS, GROWS, ALL, RESTARTS, ARRIVAL = list(KEYS)[-6:]
PARTS = ("detect", "agree", "form", "state", "first step")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    rounds: int = 5
    workers: int = 2
    """Of the whole group, at least 2; each has a node."""
    quick: bool = False
    """One round, and no node is added or taken."""
    json: Path | None = None
    against: Path | None = None


@dataclass(frozen=True)
class Pause:
    """Of one fault: seconds until the next step was done, by part where the run tells, and steps done twice."""

    seconds: float
    redone: int
    parts: dict[str, float] = field(default_factory=dict)


class Trial:
    """A cluster of a head and a node for each worker, and a run of a checkout on it."""

    def __init__(self, checkout: Path, storage: Path, settings: str = SETTINGS, *, workers: int = 2) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = [self._cluster.add_node(num_cpus=NODE_CPUS) for _ in range(workers)]
        self.whole = workers
        self._run = open_location(str(storage / "run"))
        own = ["--resources.max-workers", str(workers), "--storage", str(storage)]
        line = [sys.executable, str(checkout / "experiments/pretrain.py"), *settings.split(), *own]
        where = environment(checkout) | {"RAY_ADDRESS": self._cluster.address}
        self._output = open(storage / "output.txt", "wb")  # noqa: SIM115 (closed by end)
        self._process = subprocess.Popen(line, env=where, stdout=self._output, stderr=subprocess.STDOUT)
        self._added: list[float] = []
        self._noted, self._joined = 0, 0.0
        self.pauses: dict[str, list[Pause]] = {}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._cluster.shutdown()

    def rows(self, file: str) -> list[Row]:
        return read_rows(self._run / file)

    @property
    def workers(self) -> int:
        """Of the newest group."""
        groups = [row for row in self.rows(EVENTS) if row["event"] in ("start", "restore", "regroup")]
        if not groups:
            return 0
        return groups[-1]["workers"]["to"] if groups[-1]["event"] == "regroup" else groups[-1]["workers"]

    def wait_until(self, happened: Callable[[], Any], what: str) -> None:
        deadline = time() + TIMEOUT_S
        while not happened():
            if time() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the run did not come to {what}: {Path(self._output.name).read_text()[-2000:]}")
            sleep(0.05)

    def trains_with(self, workers: int, steps: int = 20) -> None:
        """Waits until a group of so many workers has done some steps."""

        def happened() -> bool:
            groups = [row for row in self.rows(EVENTS) if row["event"] in ("start", "restore", "regroup")]
            rows = self.rows(METRICS)
            return self.workers == workers and bool(rows) and rows[-1]["step"] >= groups[-1]["step"] + steps

        self.wait_until(happened, f"{steps} steps with {workers} workers")

    def fault(self, name: str, cause: Callable[[], None]) -> None:
        """Counts the pause from `cause` to the next step of another group."""
        self.note_restarts_and_joins()  # a restart takes rows back
        reached, at = self.rows(METRICS)[-1]["step"], time()
        cause()
        self.wait_until(lambda: self._next_step(at), f"the step after: {name}")
        change, following = self._next_step(at)
        redone = max(0, reached - change["step"])
        if name == NOTICED and "pause_s" in change:  # until then they trained on purpose
            at = change["time"] - change["pause_s"]
        self._note(name, Pause(following["time"] - at, redone, _parts(change, at, following["time"])))

    def note_restarts_and_joins(self) -> None:
        """Counts the pauses of what has followed from faults since the last call: workers that joined, and groups that
        started again. What counts as ARRIVAL is no pause: from a new node's start to the first step of its worker.
        """
        events = self.rows(EVENTS)
        first, self._noted = self._noted, len(events)
        for index, event in list(enumerate(events))[first:]:
            if event["event"] == "regroup" and event["joined"] and not event["lost"]:
                added = [at for at in self._added if self._joined < at < event["time"]]
                begin, name = event["time"] - event["pause_s"], GROWS if added else JOINS
                following = [row for row in self.rows(METRICS) if row["time"] > event["time"]]
                self._joined = event["time"]
                if added and following:
                    self._note(ARRIVAL, Pause(following[0]["time"] - added[0], 0))
            elif event["event"] == "resize":
                begin = event["time"]
                restored = next((e for e in events[index:] if e["event"] == "restore"), None)
                name = GROWS if restored and restored["workers"] == self.whole else RESTARTS
                following = [row for row in self.rows(METRICS) if restored and row["time"] > restored["time"]]
            else:
                continue
            if following:
                until = following[0]["time"]
                self._note(name, Pause(until - begin, 0, _parts(event, begin, until)))

    def _next_step(self, at: float) -> tuple[Row, Row] | None:
        """The first change of the group after a moment, and the first step after it."""
        changes = [row for row in self.rows(EVENTS) if row["event"] in ("regroup", "restore") and row["time"] > at]
        following = [row for row in self.rows(METRICS) if changes and row["time"] > changes[0]["time"]]
        return (changes[0], following[0]) if following else None

    def _note(self, name: str, pause: Pause) -> None:
        self.pauses.setdefault(name, []).append(pause)
        print(f"  {name}: {pause.seconds:.2f} s, {pause.redone} steps done twice", flush=True)

    def kill_worker(self, rank_0: bool) -> None:
        for process in training_processes():
            if (process.pid == rank_0_of(self._run)) == rank_0:
                process.kill()
                return
        raise RuntimeError("found no such worker")

    def kill_all_workers(self) -> None:
        for process in training_processes():
            process.kill()

    def kill_node(self) -> None:
        self.remove(self.node_of_another())

    def remove(self, node: Any) -> None:
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def notice(self, node: Any) -> None:
        drain_here(self._cluster.address, node.node_id, "spot", time() + NOTICE_S)

    def add_node(self) -> None:
        self._added.append(time())
        self._nodes.append(self._cluster.add_node(num_cpus=NODE_CPUS))

    def node_of_another(self) -> Any:
        """Than rank 0."""
        worker = next(process for process in training_processes() if process.pid != rank_0_of(self._run))
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self._nodes}
        return raylets[worker.ppid()]


def _parts(change: Row, at: float, next_step: float) -> dict[str, float]:
    if change["event"] != "regroup" or "agree_s" not in change:
        return {}
    inner = {name: change[f"{name}_s"] for name in ("agree", "form", "state")}
    return {"detect": change["time"] - change["pause_s"] - at, **inner, "first step": next_step - change["time"]}


def measured(checkout: Path, arguments: Arguments) -> dict[str, list[Pause]]:
    with TemporaryDirectory() as storage:
        trial = Trial(checkout, Path(storage), workers=arguments.workers)
        try:
            trial.trains_with(trial.whole)
            for _ in range(1 if arguments.quick else arguments.rounds):
                for name, rank_0 in (("a worker killed", False), ("rank 0 killed", True)):
                    trial.fault(name, lambda rank_0=rank_0: trial.kill_worker(rank_0))
                    trial.trains_with(trial.whole)
                if not arguments.quick:
                    _take_and_add(trial)
            trial.note_restarts_and_joins()
        finally:
            trial.end()
        return trial.pauses


def _take_and_add(trial: Trial) -> None:
    trial.fault("a node killed", trial.kill_node)
    trial.trains_with(trial.whole - 1)
    trial.add_node()
    trial.trains_with(trial.whole)
    leaving = trial.node_of_another()
    trial.fault(NOTICED, lambda: trial.notice(leaving))
    sleep(NOTICE_S)
    trial.remove(leaving)
    trial.trains_with(trial.whole - 1)
    trial.add_node()
    trial.trains_with(trial.whole)
    trial.fault(ALL, trial.kill_all_workers)
    trial.trains_with(trial.whole)


def _table(pauses: dict[str, list[Pause]]) -> str:
    lines = [f"{'seconds':<24}{'n':>3}{'median':>8}{'min':>8}{'max':>8}{'redone':>8}   " + "  ".join(PARTS)]
    for name in KEYS:
        found = pauses.get(name, [])
        if not found:
            continue
        seconds = [pause.seconds for pause in found]
        parts = [median(pause.parts[part] for pause in found) for part in PARTS if found[0].parts]
        lines.append(
            f"{name:<24}{len(found):>3}{median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}"
            f"{max(pause.redone for pause in found):>8}   " + "  ".join(f"{part:.2f}" for part in parts)
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    checkouts = {"this": HERE} | ({"before": arguments.against.resolve()} if arguments.against else {})
    found = {}
    for label, checkout in checkouts.items():
        print(f"{label}: {len(os.sched_getaffinity(0))} CPUs for a head and {arguments.workers} nodes", flush=True)
        found[label] = measured(checkout, arguments)
    for label, pauses in found.items():
        print(f"\n{label}\n{_table(pauses)}")
    if arguments.json:
        ours = found["this"]
        medians = {key: median(p.seconds for p in ours[name]) for name, key in KEYS.items() if name in ours}
        redone = max(pause.redone for pauses in ours.values() for pause in pauses)
        arguments.json.write_text(json.dumps(medians | {"redone_steps": redone}))


if __name__ == "__main__":
    run_command(main)
