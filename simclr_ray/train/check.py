"""The check during training: an evaluation every few epochs, whose results join the metrics row of its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from simclr_ray import collective
from simclr_ray.config import CLASSIFYING, Config
from simclr_ray.data.order import Order
from simclr_ray.methods.method import Method
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.control_word import ControlWord
from simclr_ray.train.memory import naming_too_large_check
from simclr_ray.train.state import TrainState
from simclr_ray.train.step_log import StepLog

Evaluate = Callable[[Method, int, Callable[[], None]], dict[str, float]]
"""(model, step, check_control) -> the results that join the metrics row. All workers call check_control equally often,
between two batches or two epochs of a classifier; it saves or ends there if rank 0 has decided so."""

OBJECTIVES = {"knn": "knn_top1", "linear": "linear_top1", "rankme": "rankme", "probe": "probe_check"}
"""The result by which checks are compared, by evaluate.method: more is better."""


def objective_of(config: Config) -> str:
    """That of a method with a classifier of its own: the accuracy of this."""
    method = config.evaluate.method
    return "top1" if isinstance(config.method, CLASSIFYING) and method in ("knn", "linear") else OBJECTIVES[method]


def is_own_check(config: Config, epochs: float) -> bool:
    """Whether the check after so many epochs is one of the run's own, and not due to an early stop of a command."""
    every = config.evaluate.every_epochs
    return epochs == config.train.epochs or (every > 0 and epochs % every == 0)


class Check:
    """Decides when the check is due, runs it, and knows the best. Without `evaluate` it is never due.

    `rows`: rank 0's metrics rows up to the step at which this attempt begins. They hold all that is to be known of
    earlier checks, so a resumed run finds the same best and ends at the same step. `save_best` is called on rank 0,
    where evaluate.keep_best is set, with the model of each check that is better than all before, and before the row of
    that check is written.
    """

    def __init__(
        self,
        config: Config,
        order: Order,
        log: StepLog,
        control: ControlWord,
        evaluate: Evaluate | None,
        save_best: Callable[[Method], None] | None,
        rows: Sequence[Row],
    ) -> None:
        settings, per_epoch = config.evaluate, order.steps_per_epoch
        self._log, self._control, self._evaluate = log, control, evaluate
        self._save_best = save_best if settings.keep_best else None
        self._every_steps, self._patience = settings.every_epochs * per_epoch, settings.patience
        self._objective = objective = objective_of(config)
        self._counts: Callable[[int], bool] = lambda step: is_own_check(config, step / per_epoch)
        earlier = [row[objective] for row in rows if objective in row and self._counts(row["step"])]
        self._found: list[float] = collective.from_rank_0(earlier)

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` checks were no better than the best before them."""
        since_best = len(self._found) - 1 - self._found.index(max(self._found)) if self._found else 0
        return self._patience is not None and since_best >= self._patience

    def is_due(self, step: int, last: int) -> bool:
        return self._evaluate is not None and self._every_steps > 0 and (step == last or step % self._every_steps == 0)

    def run(self, state: TrainState, row: Row) -> None:
        """Evaluates the model of this step and writes its metrics row with the results."""
        assert self._evaluate is not None
        start = monotonic()
        with naming_too_large_check():
            found = self._evaluate(state.model, state.step, lambda: self._control.during_evaluation(state, row))
        if self._counts(state.step):
            self._compare(state.model, found)
        self._log.write(row | found)
        self._log.evaluated(state.step, monotonic() - start)

    def _compare(self, model: Method, found: dict[str, float]) -> None:
        if self._objective not in found:
            return
        value = found[self._objective]
        if self._save_best and collective.rank() == 0 and value > max(self._found, default=float("-inf")):
            self._save_best(model)
        self._found.append(value)
