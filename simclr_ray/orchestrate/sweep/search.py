"""Between Ray Tune and the study: what is tried next, what is ended early, and what becomes of each trial."""

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
"""So often a trial is tried; so many trials in a row that crashed are not the trials' fault, and the sweep ends."""
LOSSES = 30
"""So often a trial's process may be lost, with a machine that was taken away."""

TaskOf = Callable[[FrozenTrial], dict[str, Any]]
"""The config that Tune hands to TrialRun for a trial."""


class StudySearch(Searcher):
    """Serves the trials that an earlier driver left unfinished, then new ones until the study holds `trials`.

    Ray's own OptunaSearch keeps no trial over a restart, tells those that ASHA ended as complete and leaves those that
    failed running for ever.
    """

    def __init__(
        self, study: Study, trials: int, task: TaskOf, say: Callable[[str], None], ask_to_end: Callable[[str], None]
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self._study, self._trials, self._task, self._say = study, trials, task, say
        self._ask_to_end = ask_to_end
        self._left = deque(study.unfinished())
        self.numbers: dict[str, int] = {}
        """From Tune's id of a trial to the study's."""
        self.live: dict[str, FrozenTrial] = {}
        """By Tune's id, the trials that run."""
        self.bad_input: str | None = None
        self.crashes: list[str] = []
        """Of the trials that failed last, one after the other."""
        self._mishaps: Counter[tuple[int, str]] = Counter()

    @property
    def ends(self) -> bool:
        """Whether going on makes no sense."""
        return self.bad_input is not None or len(self.crashes) >= CRASHES

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        while not self.ends and (self._left or len(self._study.trials) < self._trials):
            try:
                trial = self._left.popleft() if self._left else self._study.ask()
            except BadInput as error:  # another driver has the sweep
                self.bad_input = str(error)
                break
            try:
                task = self._task(trial)
            except BadInput as error:  # its values do not go together, or with the data
                self._fail(trial.number, str(error))
                continue
            self._study.set_budget(trial.number, task["budget_samples"])
            self.numbers[trial_id] = trial.number
            self.live[trial_id] = trial
            return task
        if self.live and not self.ends:
            return None  # not yet: one of them may have to be tried again
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
        """Tune would wrap it, and the cause would be lost."""
        try:
            yield
        except BadInput as error:
            self.bad_input = str(error)

    def _completed(self, trial: FrozenTrial, result: dict[str, Any], error: bool) -> None:
        if "bad_input" in result:
            self.bad_input = result["bad_input"]
            return  # it stays unfinished: the same command, mended, goes on with it
        if error or "crashed" in result:
            self._try_again(trial, result.get("crashed"))
            return
        if "objective" in result:
            self._study.report(trial.number, result["samples"], result["objective"])
        if not result.get("whole"):
            self._ask_to_end(trial.user_attrs["run"])  # Tune keeps its process for the next trial, if one comes
        if "failed" in result:
            self._fail(trial.number, result["failed"])
        elif result.get("whole"):
            self._end(trial.number, TrialState.COMPLETE)
        elif "objective" in result:
            self._end(trial.number, TrialState.PRUNED)
        # Else it was asked to end by Ctrl-C, and stays unfinished.

    def _try_again(self, trial: FrozenTrial, crash: str | None) -> None:
        """What the machines did is not the trial's fault, as far as one can tell; it goes on where it was."""
        self._mishaps[trial.number, "crash" if crash else "loss"] += 1
        if self._mishaps[trial.number, "crash"] < CRASHES and self._mishaps[trial.number, "loss"] < LOSSES:
            self._left.append(trial)
            return
        reason = crash or f"its process was lost {LOSSES} times"
        self._fail(trial.number, reason)
        self.crashes.append(reason)

    def _fail(self, number: int, reason: str) -> None:
        self._study.tell(number, TrialState.FAIL, reason)
        self._say(self._line(number))

    def _end(self, number: int, state: TrialState) -> None:
        self.crashes.clear()
        self._study.tell(number, state)
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
        line += f"  best {best.value:.2f} ({best.user_attrs['run']})" if best else ""
        return line + (f"  (the study is not saved: {self._study.upload_error})" if self._study.upload_error else "")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept by itself."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep starts again from its study")


@dataclass(frozen=True)
class _Numbered:
    """As much of a trial as a rung asks for."""

    trial_id: str


class StudyAsha(AsyncHyperBandScheduler):
    """ASHA (Li et al. 2018) in units of samples, whose rungs begin with the results in the study.

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
            max_t=max(first_rung, budget // reduction),  # a trial that came further has used most of its budget
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
        trial_so_far = self._study.trials[self._numbers[trial.trial_id]]
        return self._on_value(trial_so_far, result["samples"], result["objective"])

    def _on_value(self, trial: FrozenTrial, samples: int, value: float) -> str:
        at = round(samples * self._budget / self._budget_of(trial))
        return self._brackets[0].on_result(_Numbered(str(trial.number)), at, value)  # type: ignore[arg-type]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its results have said all."""
