"""Connects Ray Tune to the Optuna study: suggests trials, prunes them with ASHA, and records how each ended."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from simclr_ray.config import BadInput
from simclr_ray.sweep.study import Study

CRASHES = 3
"""A trial is tried so often; after so many failed trials in a row the cause is not theirs, and the sweep ends."""
LOSSES = 30
"""A trial's process may be lost so often, with a machine that was taken away."""

TrialConfigOf = Callable[[FrozenTrial], dict[str, Any]]
"""From a trial of the study to the config of its TrialRun."""


class StudySearch(Searcher):
    """Suggests the trials that an earlier driver left unfinished, then new ones until the study holds `trials`.

    Ray's own OptunaSearch keeps no trial over a restart, records those that ASHA pruned as complete and leaves those
    that failed running for ever.
    """

    def __init__(
        self,
        study: Study,
        trials: int,
        config_of: TrialConfigOf,
        log: Callable[[str], None],
        request_end: Callable[[str], None],
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self._study, self._trials, self._config_of, self._log = study, trials, config_of, log
        self._request_end = request_end
        self._left = deque(study.unfinished())
        self.numbers: dict[str, int] = {}
        """The study's number of a trial by Tune's id."""
        self.live: dict[str, FrozenTrial] = {}
        """The running trials by Tune's id."""
        self.bad_input: str | None = None
        self.crashes: list[str] = []
        """Reasons of the latest trials that failed in a row."""
        self._failures: Counter[tuple[int, str]] = Counter()

    @property
    def ends(self) -> bool:
        """Whether the sweep ends: for bad input, or too many crashed trials in a row."""
        return self.bad_input is not None or len(self.crashes) >= CRASHES

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        while not self.ends and (self._left or len(self._study.trials) < self._trials):
            try:
                trial = self._left.popleft() if self._left else self._study.ask()
            except BadInput as error:  # another driver has taken the sweep over
                self.bad_input = str(error)
                break
            try:
                config = self._config_of(trial)
            except BadInput as error:  # its values do not fit together, or the data
                self._fail(trial.number, str(error))
                continue
            self._study.set_budget(trial.number, config["budget_samples"])
            self.numbers[trial_id] = trial.number
            self.live[trial_id] = trial
            return config
        if self.live and not self.ends:
            return None  # nothing yet: a running trial may have to be retried
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "objective" in result:
            with self._ended_by_bad_input():
                self._study.report(self.numbers[trial_id], result["samples"], result["objective"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.live.pop(trial_id, None)
        if trial:
            with self._ended_by_bad_input():
                self._completed(trial, result or {}, error)

    @contextmanager
    def _ended_by_bad_input(self) -> Iterator[None]:
        """Keeps the message of a BadInput, which Tune would wrap and lose."""
        try:
            yield
        except BadInput as error:
            self.bad_input = str(error)

    def _completed(self, trial: FrozenTrial, result: dict[str, Any], error: bool) -> None:
        if "bad_input" in result:
            self.bad_input = result["bad_input"]
            return  # the trial stays unfinished: the corrected command resumes it
        if error or "crashed" in result:
            self._retry(trial, result.get("crashed"))
            return
        if "objective" in result:
            self._study.report(trial.number, result["samples"], result["objective"])
        if not result.get("whole"):
            self._request_end(trial.user_attrs["run"])  # Tune may keep its process for the next trial
        if "failed" in result:
            self._fail(trial.number, result["failed"])
        elif result.get("whole"):
            self._end(trial.number, TrialState.COMPLETE)
        elif "objective" in result:
            self._end(trial.number, TrialState.PRUNED)
        # Else Ctrl-C has ended it, and it stays unfinished.

    def _retry(self, trial: FrozenTrial, crash: str | None) -> None:
        """Queues the trial again, to resume from its checkpoint, until it has crashed or been lost too often."""
        self._failures[trial.number, "crash" if crash else "loss"] += 1
        if self._failures[trial.number, "crash"] < CRASHES and self._failures[trial.number, "loss"] < LOSSES:
            self._left.append(trial)
            return
        reason = crash or f"its process was lost {LOSSES} times"
        self._fail(trial.number, reason)
        self.crashes.append(reason)

    def _fail(self, number: int, reason: str) -> None:
        self._study.tell(number, TrialState.FAIL, reason)
        self._log(self._line(number))

    def _end(self, number: int, state: TrialState) -> None:
        self.crashes.clear()
        self._study.tell(number, state)
        self._log(self._line(number))

    def _line(self, number: int) -> str:
        trials = self._study.trials
        trial, ended = trials[number], sum(trial.state.is_finished() for trial in trials)
        line = f"{ended}/{self._trials}  {trial.user_attrs['run']}  {trial.state.name.lower()}"
        if trial.intermediate_values:
            samples = max(trial.intermediate_values)
            line += f"  {trial.intermediate_values[samples]:.2f} at {samples:,} samples"
        if "reason" in trial.user_attrs:
            line += f"  ({trial.user_attrs['reason']})"
        best = self._study.best()
        line += f"  best {best.value:.2f} ({best.user_attrs['run']})" if best else ""
        return line + (f"  (the study is not saved: {self._study.upload_error})" if self._study.upload_error else "")

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study saves itself."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep resumes from its study")


@dataclass(frozen=True)
class _Numbered:
    """The one attribute of a Tune trial that a rung of AsyncHyperBandScheduler reads."""

    trial_id: str


class StudyAsha(AsyncHyperBandScheduler):
    """ASHA (Li et al. 2018) in units of samples, whose rungs begin with the values in the study.

    A trial is identified by its number in the study, so that one resumed after a restart counts once. `budget_of` gives
    a trial's whole budget, which depends on its batch size: samples are scaled to the sweep's `budget`.
    """

    def __init__(
        self,
        study: Study,
        numbers: dict[str, int],
        budget_of: Callable[[FrozenTrial], int],
        *,
        first_rung: int,
        budget: int,
        reduction: int,
    ) -> None:
        super().__init__(
            time_attr="samples",
            metric="objective",
            mode="max",
            max_t=max(first_rung, budget // reduction),  # a trial beyond it has used most of its budget
            grace_period=first_rung,
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self._study, self._numbers, self._budget_of, self._budget = study, numbers, budget_of, budget
        for trial in study.trials:
            for samples, value in sorted(trial.intermediate_values.items()):
                self._on_value(trial, samples, value)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "objective" not in result or result["whole"]:
            return self.CONTINUE
        in_study = self._study.trials[self._numbers[trial.trial_id]]
        return self._on_value(in_study, result["samples"], result["objective"])

    def _on_value(self, trial: FrozenTrial, samples: int, value: float) -> str:
        at = round(samples * self._budget / self._budget_of(trial))
        return self._brackets[0].on_result(_Numbered(str(trial.number)), at, value)  # type: ignore[arg-type]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Does nothing: every value came with a result."""
