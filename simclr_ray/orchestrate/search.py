"""Between Ray Tune and the study: what is tried next, what is ended early, and what becomes of each trial."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from simclr_ray.orchestrate.study import Study

CRASHES = 3
"""So many in a row are not the trials' fault: the sweep ends."""

Task = Callable[[FrozenTrial], dict[str, Any]]
"""What TrialRun is told of a trial."""


class StudySearch(Searcher):
    """Serves the trials that an earlier driver left unfinished, then new ones until the study holds `trials`.

    Ray's own OptunaSearch keeps no trial over a restart, tells those that ASHA ended as complete and leaves those that
    failed running for ever.
    """

    def __init__(self, study: Study, trials: int, task: Task, say: Callable[[str], None]) -> None:
        super().__init__(metric="objective", mode="max")
        self._study, self._trials, self._task, self._say = study, trials, task, say
        self._left = deque(study.unfinished())
        self.numbers: dict[str, int] = {}
        """From Tune's id of a trial to the study's."""
        self.bad_input: str | None = None
        self.crashes: list[str] = []

    @property
    def ends(self) -> bool:
        """Whether going on makes no sense."""
        return self.bad_input is not None or len(self.crashes) >= CRASHES

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        if self.ends or not (self._left or len(self._study.trials) < self._trials):
            return Searcher.FINISHED
        trial = self._left.popleft() if self._left else self._study.ask()
        self.numbers[trial_id] = trial.number
        return self._task(trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "objective" in result:
            self._study.report(self.numbers[trial_id], result["samples"], result["objective"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, result = self.numbers[trial_id], result or {}
        if "bad_input" in result:
            self.bad_input = result["bad_input"]
            return  # it stays unfinished: the same command, mended, goes on with it
        if "objective" in result:
            self._study.report(number, result["samples"], result["objective"])
        crash = result.get("crashed") or ("its process was lost" if error else None)
        self.crashes = [*self.crashes, crash] if crash else []
        reason = crash or result.get("failed")
        if reason:
            self._study.tell(number, TrialState.FAIL, reason)
        elif result.get("whole"):
            self._study.tell(number, TrialState.COMPLETE)
        else:
            self._study.tell(number, TrialState.PRUNED)
        self._say(self._line(number))

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
        return line + (f"  best {best.value:.2f} ({best.user_attrs['run']})" if best else "")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept by itself."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep starts again from its study")


@dataclass(frozen=True)
class _Numbered:
    """As much of a trial as a rung asks for."""

    trial_id: str


class StudyAsha(AsyncHyperBandScheduler):
    """ASHA (Li et al. 2018) in units of samples, whose rungs begin with what the study knows.

    Trials count under their number in the study, so that one that goes on after a restart counts once. `budget_of`
    gives a trial's whole budget, which its batch size may make another one: its samples count in proportion.
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
            max_t=budget,
            grace_period=first_rung,
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self._study, self._numbers, self._budget_of = study, numbers, budget_of
        # All values of one rung before the next: the order in which they came does not matter to what a rung holds.
        for trial in study.trials:
            for samples, value in sorted(trial.intermediate_values.items()):
                self._on_value(trial, samples, value)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "objective" not in result or result["whole"]:
            return self.CONTINUE
        known = self._study.trials[self._numbers[trial.trial_id]]
        return self._on_value(known, result["samples"], result["objective"])

    def _on_value(self, trial: FrozenTrial, samples: int, value: float) -> str:
        at = round(samples * self._max_t / self._budget_of(trial))
        return self._brackets[0].on_result(_Numbered(str(trial.number)), at, value)  # type: ignore[arg-type]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """All is known from its results."""
