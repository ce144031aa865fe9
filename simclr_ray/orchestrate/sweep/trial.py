"""A trial of a sweep: Ray Tune's Trainable around a pretraining run of its own."""

from __future__ import annotations

import queue
import threading
from typing import Any

from ray import tune

from simclr_ray.config import BadInput, Config
from simclr_ray.orchestrate.failure import described
from simclr_ray.orchestrate.pretrain import pretrain
from simclr_ray.orchestrate.task import request_end
from simclr_ray.planning.shares import Share
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row, read_rows
from simclr_ray.train.control import Interrupted
from simclr_ray.train.memory import TooLittleMemory, free_cached_memory
from simclr_ray.train.metrics import Diverged

COLLAPSED = 0.05
"""A feature_std below this counts as collapsed: the projections point in one direction (1: spread over the sphere)."""


class TrialRun(tune.Trainable):
    """Each `step` waits for the next check of the run and returns its objective; the last one waits for the run's end.

    config: run (its name), config (JSON), storage, share (of the cluster), alone (see pretrain), objective (a key of
    the metrics rows), budget_samples, and reported: the samples at which the study has the objective already. Results
    have `samples` and `objective`, and whether the `whole` budget was used; one with `failed` (diverged, collapsed, too
    large for the device), `crashed` or `bad_input`, a reason each, is the last.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config
        self._run = open_location(config["storage"]) / config["run"]
        self._reported: set[int] = set(config["reported"])
        self._checks: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._queue_logged_checks()
        self._thread = threading.Thread(target=self._train, name=config["run"], daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        row = self._checks.get()
        if row is None:
            return self._ended() | {"done": True}
        result = self._result(row)
        if result["whole"]:
            self._thread.join()  # until its last save and its encoder are written
            result["done"] = True
        return result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Runs the next trial in the same process, which has imported all it needs."""
        self._end()
        self._error = None  # its traceback holds the last trial's tensors
        free_cached_memory()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self._end()

    def _train(self) -> None:
        trial = self._config
        try:
            config = Config.from_json(trial["config"])
            share = Share(**trial["share"])
            pretrain(config, trial["run"], trial["storage"], share=share, alone=trial["alone"], on_row=self._on_row)
            self._queue_logged_checks()  # those since the last poll
        except BaseException as error:  # noqa: BLE001 (whatever it was, `step` reports it)
            self._error = error
        self._checks.put(None)

    def _on_row(self, row: Row | None) -> None:
        checked = row and row["checked"]
        if checked and checked["samples"] not in self._reported:
            self._queue_logged_checks()

    def _queue_logged_checks(self) -> None:
        """All checks that were not reported before, in their order: several may come between two polls of the rows."""
        for row in read_rows(self._run / METRICS):
            if self._config["objective"] in row and row["samples"] not in self._reported:
                self._reported.add(row["samples"])
                self._checks.put(row)

    def _result(self, row: Row) -> dict[str, Any]:
        whole = row["samples"] >= self._config["budget_samples"]
        result = {"samples": row["samples"], "objective": row[self._config["objective"]], "whole": whole}
        if row["feature_std"] < COLLAPSED:
            reason = f"collapsed: feature_std {row['feature_std']:.3f} at step {row['step']}"
            return result | {"failed": reason, "done": True}
        return result

    def _ended(self) -> dict[str, Any]:
        """How the run ended after its last check, or without one."""
        if self._error is None:
            events = read_rows(self._run / EVENTS)
            done = bool(events) and events[-1]["event"] == "done"  # by evaluate.patience maybe, before its budget
            return {"whole": done or max(self._reported, default=0) >= self._config["budget_samples"]}
        reason = described(self._error)
        if isinstance(self._error, (Diverged, TooLittleMemory)):
            return {"failed": reason}
        if isinstance(self._error, BadInput):
            return {"bad_input": str(self._error)}
        if isinstance(self._error, Interrupted):
            raise self._error  # its node is taken away: Tune restarts the trial on another one
        return {"crashed": reason}

    def _end(self) -> None:
        """Requests that the run saves and ends, with its workers, and waits for it."""
        while self._thread.is_alive():  # repeatedly: a run that is starting deletes earlier requests
            request_end(self._run)
            self._thread.join(1.0)
