"""The check during training: an evaluation every few epochs, whose results join the metrics row of its step."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from simclr_ray.methods.method import Method
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.control_word import ControlWord
from simclr_ray.train.memory import naming_too_large_check
from simclr_ray.train.state import TrainState
from simclr_ray.train.step_log import StepLog

Evaluate = Callable[[Method, int, Callable[[], None]], dict[str, float]]
"""(model, step, check_control) -> the results that join the metrics row. All workers call check_control equally often,
between two batches or two epochs of a classifier; it saves or ends there if rank 0 has decided so."""


class Check:
    """Decides when the check is due, and runs it. Without `evaluate` it is never due."""

    def __init__(self, evaluate: Evaluate | None, every_steps: int, log: StepLog, control: ControlWord) -> None:
        self._evaluate, self._every_steps, self._log, self._control = evaluate, every_steps, log, control

    def is_due(self, step: int, last: int) -> bool:
        return self._evaluate is not None and self._every_steps > 0 and (step == last or step % self._every_steps == 0)

    def run(self, state: TrainState, row: Row) -> None:
        """Evaluates the model of this step and writes its metrics row with the results."""
        assert self._evaluate is not None
        start = monotonic()
        with naming_too_large_check():
            found = self._evaluate(state.model, state.step, lambda: self._control.during_evaluation(state, row))
        self._log.write(row | found)
        self._log.evaluated(state.step, monotonic() - start)
