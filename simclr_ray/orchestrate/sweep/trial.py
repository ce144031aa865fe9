"""A trial of a sweep: a pretraining run of its own, as Ray Tune sees it."""

from __future__ import annotations

import queue
import threading
from typing import Any

from ray import tune

from simclr_ray.config import BadInput, Config
from simclr_ray.orchestrate.failure import described
from simclr_ray.orchestrate.pretrain import pretrain
from simclr_ray.orchestrate.task import ask_to_end
from simclr_ray.planning.shares import Share
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import METRICS, Row, read_rows
from simclr_ray.train.control import Interrupted
from simclr_ray.train.memory import TooLittleMemory
from simclr_ray.train.metrics import Diverged

COLLAPSED = 0.05
"""A feature_std below this: the projections point in one direction (1: they fill the sphere)."""


class TrialRun(tune.Trainable):
    """Each `step` lasts until the next check of the run, whose objective it gives; the last one until the run's end.

    config: run (its name), config (JSON), storage, share (of the cluster), alone (see pretrain), objective (a key of
    the metrics rows), budget_samples, and reported: the samples at which the objective is known already. Results have
    `samples` and `objective`, and whether the `whole` budget was used; one with `failed` (diverged, collapsed, too
    large for the device), `crashed` or `bad_input`, a reason each, is the last.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._task = config
        self._run = open_location(config["storage"]) / config["run"]
        self._known: set[int] = set(config["reported"])
        self._checks: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._read_rows()
        self._thread = threading.Thread(target=self._train, name=config["run"], daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        row = self._checks.get()
        if row is None:
            return self._ended() | {"done": True}
        result = self._result(row)
        if result["whole"]:
            self._thread.join()  # its last save and its encoder
            result["done"] = True
        return result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process, which has imported all it needs."""
        self._end()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self._end()

    def _train(self) -> None:
        task = self._task
        try:
            config = Config.from_json(task["config"])
            share = Share(**task["share"])
            pretrain(config, task["run"], task["storage"], share=share, alone=task["alone"], on_row=self._on_row)
            self._read_rows()  # rows that came between two polls
        except BaseException as error:  # noqa: BLE001 (whatever it was, `step` says it)
            self._error = error
        self._checks.put(None)

    def _read_rows(self) -> None:
        for row in read_rows(self._run / METRICS):
            self._on_row(row | {"checked": row})

    def _on_row(self, row: Row | None) -> None:
        checked = row and row["checked"]
        if checked and self._task["objective"] in checked and checked["samples"] not in self._known:
            self._known.add(checked["samples"])
            self._checks.put(checked)

    def _result(self, row: Row) -> dict[str, Any]:
        whole = row["samples"] >= self._task["budget_samples"]
        result = {"samples": row["samples"], "objective": row[self._task["objective"]], "whole": whole}
        if row["feature_std"] < COLLAPSED:
            reason = f"collapsed: feature_std {row['feature_std']:.3f} at step {row['step']}"
            return result | {"failed": reason, "done": True}
        return result

    def _ended(self) -> dict[str, Any]:
        """How the run ended after its last check, or without one."""
        if self._error is None:
            return {"whole": max(self._known, default=0) >= self._task["budget_samples"]}
        reason = described(self._error)
        if isinstance(self._error, (Diverged, TooLittleMemory)):
            return {"failed": reason}
        if isinstance(self._error, BadInput):
            return {"bad_input": str(self._error)}
        if isinstance(self._error, Interrupted):
            raise self._error  # its machine goes: Tune begins the trial again, on another one
        return {"crashed": reason}

    def _end(self) -> None:
        """Has the run save and end, its workers with it, and waits for that."""
        while self._thread.is_alive():  # a request from before the run began is dropped
            ask_to_end(self._run)
            self._thread.join(1.0)
