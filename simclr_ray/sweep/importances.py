"""How much of the objective's variance each searched setting explains: fANOVA over the trials at full budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from simclr_ray.sweep.records import SweepRecords
from simclr_ray.sweep.trials import Setting, Trial

FEWEST_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Parts of the variance."""

    parts: dict[str, float]
    """By dotted key, most important first; what they leave to 1 lies in interactions."""
    unknown: list[str]
    """Keys of which the complete trials have one value only, so that their importance is unknown."""
    trials: int


def importances(records: SweepRecords) -> Importances | str:
    """fANOVA (Hutter et al. 2014) by Optuna's random forest, or in words why there are none.

    Unlike Optuna's own call this one hands over logarithms where the search was in logarithms, so that the variance
    is over the space as it was searched: over raw values 0.05 to 0.1 would be a twentieth of 0.05 to 1.
    """
    trials = [
        trial
        for trial in records.of_state("complete")
        if all(s.place(trial.params.get(s.key)) is not None for s in records.space)
    ]
    if len(trials) < FEWEST_TRIALS:
        return f"{len(trials)} complete; fANOVA needs {FEWEST_TRIALS} complete trials at least"
    if len({trial.objective for trial in trials}) == 1:
        return "all complete trials have the same objective"
    varied = [s for s in records.space if len({s.place(trial.params[s.key]) for trial in trials}) > 1]
    if not varied:
        return "the complete trials do not differ in any setting"
    parts = _fanova(varied, trials, records.seed)
    return Importances(
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
        unknown=[s.key for s in records.space if s not in varied],
        trials=len(trials),
    )


def _fanova(settings: list[Setting], trials: list[Trial], seed: int) -> dict[str, float]:
    from optuna import create_study  # with scikit-learn seconds to import
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.trial import create_trial

    places = {s.key: [s.place(trial.params[s.key]) or 0.0 for trial in trials] for s in settings}
    # Trials enqueued by hand may lie outside of the range.
    distributions: dict[str, BaseDistribution] = {
        s.key: CategoricalDistribution(range(len(s.choices)))
        if s.choices
        else FloatDistribution(min(s.ends[0], *places[s.key]), max(s.ends[1], *places[s.key]))
        for s in settings
    }
    with _quiet():
        study = create_study(direction="maximize")
        for at, trial in enumerate(trials):
            params = {s.key: int(places[s.key][at]) if s.choices else places[s.key][at] for s in settings}
            study.add_trial(create_trial(value=trial.objective, params=params, distributions=distributions))
    parts = FanovaImportanceEvaluator(seed=seed % 2**32).evaluate(study)
    return {key: float(part) for key, part in parts.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every study that it makes."""
    from optuna import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
