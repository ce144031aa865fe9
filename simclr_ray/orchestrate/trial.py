"""A trial of a sweep: a pretraining run of its own, as Ray Tune sees it."""

from __future__ import annotations

import queue
import threading
from typing import Any

from ray import tune
from ray.experimental import internal_kv

from simclr_ray.config import BadInput, Config
from simclr_ray.data.rows import Row, read_rows
from simclr_ray.data.storage import open_location
from simclr_ray.orchestrate.failure import described
from simclr_ray.orchestrate.pretrain import pretrain
from simclr_ray.orchestrate.train_fn import end_key
from simclr_ray.train.control import Interrupted
from simclr_ray.train.loop import Diverged

COLLAPSED = 0.05
"""A feature_std below this: the projections point in one direction (1: they fill the sphere)."""


class TrialRun(tune.Trainable):
    """Each `step` lasts until the next check of the run, whose objective it gives; the last one until the run's end.

    config: run (its name), config (JSON), storage, part (of the cluster), alone (see pretrain), objective (a key of the
    metrics rows), budget_samples, and reported: the samples at which the objective is known already. Results have
    `samples`, `objective` and whether that was at the `whole` budget; one with `failed` (diverged, collapsed),
    `crashed` or `bad_input`, a reason each, is the last.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._task = config
        self._run = open_location(config["storage"]) / config["run"]
        self._known: set[int] = set(config["reported"])
        self._checks: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        for row in read_rows(self._run / "metrics.jsonl"):
            self._heard(row | {"checked": row})
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
            pretrain(config, task["run"], task["storage"], part=task["part"], alone=task["alone"], on_row=self._heard)
        except BaseException as error:  # noqa: BLE001 (whatever it was, `step` says it)
            self._error = error
        self._checks.put(None)

    def _heard(self, row: Row | None) -> None:
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
            return {}
        reason = described(self._error)
        if isinstance(self._error, Diverged):
            return {"failed": reason}
        if isinstance(self._error, BadInput):
            return {"bad_input": str(self._error)}
        if isinstance(self._error, Interrupted):
            raise self._error  # its machine goes: Tune begins the trial again, on another one
        return {"crashed": reason}

    def _end(self) -> None:
        """Has the run save and end, its workers with it, and waits for that."""
        if self._thread.is_alive():
            internal_kv._internal_kv_put(end_key(self._run), "", overwrite=True)
        self._thread.join()
