"""A sweep's Optuna study: a journal on this machine's disk, copied to the storage after every event.

The copy is the truth: a sweep that starts again begins with it. optuna-dashboard reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from simclr_ray.config import BadInput
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import STUDY, trial_name
from simclr_ray.sweep.space import Choices, Range, Space


class Study:
    """Trials by number, each with its parameters, its objective at every budget reached, and how it ended.

    `sampler`: "tpe" (multivariate; the first `startup` trials are random) or "random". What is drawn for trial n
    depends on `seed`, n and the trials in the study by then, not on how often the sweep was started. `given`: the
    parameters of a trial that are not to be drawn, by its number.
    `still_ours` is called before each copy: whether no other driver has taken the sweep over.
    """

    def __init__(
        self,
        folder: Location,
        work: Path,
        space: Space,
        *,
        sampler: str,
        seed: int,
        startup: int,
        given: Callable[[int], dict[str, Any] | None],
        still_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._file, self._copy = work / STUDY, folder / STUDY
        if self._copy.exists():
            self._file.write_bytes(self._copy.read_bytes())
        storage = JournalStorage(JournalFileBackend(str(self._file)))
        if optuna.get_all_study_names(storage):
            self._study = optuna.load_study(study_name=folder.name, storage=storage)
        else:
            self._study = optuna.create_study(study_name=folder.name, storage=storage, direction="maximize")
        self._space = {key: _distribution(domain) for key, domain in space.items()}
        self._still_ours = still_ours
        self._sampler, self._seed, self._startup, self._given = sampler, seed, startup, given
        self._handles: dict[int, optuna.Trial] = {}
        self.upload_error: str | None = None
        """Why the newest copy failed; the next event copies all."""

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def unfinished(self) -> list[FrozenTrial]:
        """Those that an earlier driver had begun."""
        return [trial for trial in self.trials if trial.state == TrialState.RUNNING]

    def best(self) -> FrozenTrial | None:
        """The best of those that used the whole budget."""
        whole = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return max(whole, key=lambda trial: trial.values[0], default=None)

    def ask(self) -> FrozenTrial:
        """A new trial, and in the storage before it begins."""
        number = len(self.trials)
        self._study.sampler = self._sampler_of(number)
        given = self._given(number)
        if given is not None:
            self._study.enqueue_trial(given)
        trial = self._study.ask(fixed_distributions=self._space)
        trial.set_user_attr("run", trial_name(trial.number))
        self._handles[trial.number] = trial
        self.upload()  # a trial that is not in the storage would be drawn again
        return self.trials[trial.number]

    def set_budget(self, number: int, samples: int) -> None:
        """Samples of the whole trial, which depend on its own values; for the report."""
        if "budget_samples" not in self.trials[number].user_attrs:
            self._handle(number).set_user_attr("budget_samples", samples)

    def report(self, number: int, samples: int, value: float) -> None:
        """The objective after so many samples; one value for each."""
        if samples not in self.trials[number].intermediate_values:
            self._handle(number).report(value, samples)
            self._try_upload()

    def tell(self, number: int, state: TrialState, reason: str | None = None) -> None:
        """Records how a trial ended: COMPLETE and PRUNED with its last reported objective, FAIL with the reason."""
        before = self.trials[number]
        if before.state.is_finished():
            return
        trial = self._handle(number)
        if reason:
            trial.set_user_attr("reason", reason)
        trial.set_user_attr("samples", max(before.intermediate_values, default=0))
        last = before.intermediate_values[max(before.intermediate_values)] if state == TrialState.COMPLETE else None
        self._study.tell(trial, last, state=state)
        self._try_upload()

    def _handle(self, number: int) -> optuna.Trial:
        if number not in self._handles:
            self._handles[number] = optuna.Trial(self._study, self.trials[number]._trial_id)
        return self._handles[number]

    def _sampler_of(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self._seed * 1_000_003 + number) % 2**32
        if self._sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=self._startup,
            multivariate=True,
            constant_liar=True,
        )

    def upload(self) -> None:
        """Copies the journal to the storage. Raises OSError, and BadInput when another driver has the sweep."""
        if not self._still_ours():
            raise BadInput(f"another driver has taken over {self._copy}: this one stops without writing")
        self._copy.write_bytes(self._file.read_bytes())
        self.upload_error = None

    def _try_upload(self) -> None:
        try:
            self.upload()
        except OSError as error:
            self.upload_error = str(error)


def _distribution(domain: Range | Choices) -> BaseDistribution:
    if isinstance(domain, Choices):
        return CategoricalDistribution(domain.choices)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
