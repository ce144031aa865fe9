"""A sweep: many short pretraining runs under Ray Tune; each trial is a run that can be resumed and evaluated."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from optuna.trial import FrozenTrial
from ray import tune

from simclr_ray.config import LABELLED, BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import last_step, order_of
from simclr_ray.evaluate.fitted import NOTHING_UNSEEN
from simclr_ray.evaluate.labels import probe_classes
from simclr_ray.orchestrate.cluster import join_or_start, once_large_enough
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.orchestrate.pretrain import run_folder
from simclr_ray.orchestrate.sweep.search import StudyAsha, StudySearch
from simclr_ray.orchestrate.sweep.trial import TrialRun
from simclr_ray.orchestrate.task import request_end
from simclr_ray.planning.shares import Share, share_of
from simclr_ray.storage.lease import holds, lease, require_free
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import SWEEP
from simclr_ray.sweep.settings import SweepSettings, record_of, require_same
from simclr_ray.sweep.study import Study
from simclr_ray.train.check import objective_of
from simclr_ray.train.tracking.build import require_tracking

TRIAL_CPUS = 0.01
"""CPUs of the process that starts a trial's run and waits for it."""


def sweep(config: Config, settings: SweepSettings, name: str, storage: str, *, concurrent: int | None = None) -> str:
    """Starts or resumes the sweep `STORAGE/NAME` until its study holds `settings.trials` trials, all ended.

    Every trial is the run STORAGE/NAME/trial-0000 and so on. `config`: the recipe with its overrides; the objective is
    its evaluate.method on rows held out of the labelled training set, or the probe's accuracy. Returns the sweep's
    address. Raises BadInput for what the user can correct.
    """
    require_tracking(config.logging)
    folder = run_folder(name, storage)
    require_free(folder)
    config, dataset = _prepared(config, storage)
    _require_unseen(config, settings)
    _require_fits(config, settings, dataset, workers=1)
    record = record_of(config, settings, objective_of(config), _budget(config, dataset))
    require_same(folder, record)
    join_or_start()
    share = once_large_enough(lambda: _share(config, concurrent or _concurrent(config)), config.elasticity.start_wait_s)
    concurrent = concurrent or _concurrent(config)
    _require_fits(config, settings, dataset, share.max_workers)
    with lease(folder) as driver, tempfile.TemporaryDirectory(prefix="simclr_ray-sweep-") as work:
        require_same(folder, record)
        (folder / SWEEP).write_bytes((json.dumps(record, indent=2) + "\n").encode())
        study = Study(
            folder,
            Path(work),
            settings.space,
            sampler=settings.sampler,
            seed=settings.seed,
            startup=settings.startup,
            given=lambda number: settings.given(number, config),
            still_ours=lambda: holds(folder, driver),
        )
        _search(study, config, dataset, settings, folder, share, concurrent)
    return folder.uri


def _require_unseen(config: Config, settings: SweepSettings) -> None:
    """Raises BadInput where a trial would be measured on images whose labels it has learned."""
    for values in ({}, *settings.samples()):
        trial = config.with_overrides(values)
        measured = trial.evaluate.method != "rankme" and trial.evaluate.train == trial.data.train
        if measured and isinstance(trial.method, LABELLED):
            source = trial.data.train
            raise BadInput(NOTHING_UNSEEN.format(method=trial.method.name, source=source, flag="evaluate.train"))


def _require_fits(config: Config, settings: SweepSettings, dataset: Dataset, workers: int) -> None:
    """Raises BadInput, before anything starts, for a batch in the space that does not fit the data or the workers."""
    for values in settings.samples():
        order_of(config.with_overrides(values), dataset).rows_per_pass(workers)


def _search(
    study: Study,
    config: Config,
    dataset: Dataset,
    settings: SweepSettings,
    folder: Location,
    share: Share,
    concurrent: int,
) -> None:
    """Runs trials until the study is complete, or raises what prevented it."""

    def budget_of(trial: FrozenTrial) -> int:
        return _budget(config.with_overrides(trial.params), dataset)

    def config_of(trial: FrozenTrial) -> dict[str, Any]:
        own = config.with_overrides(trial.params | settings.seed_of(trial.number, config))
        order_of(own, dataset).rows_per_pass(share.max_workers)
        return _trial_config(own, folder, trial, share, budget_of(trial))

    search = StudySearch(study, settings.trials, config_of, _log, lambda run: request_end(folder / run))
    asha = None
    budget = _budget(config, dataset)
    rung = _budget(config.with_overrides({"saving.stop_after_epochs": float(config.evaluate.every_epochs)}), dataset)
    if settings.reduction > 1 and rung >= budget:
        _log("no trial is ended early: evaluate.every_epochs leaves no check before the end")
    elif settings.reduction > 1:
        asha = StudyAsha(study, search.numbers, budget_of, first_rung=rung, budget=budget, reduction=settings.reduction)
    _run(search, asha, folder, concurrent, share)
    if search.bad_input:
        raise BadInput(search.bad_input)
    study.upload()
    if search.ends:
        raise RuntimeError(f"{len(search.crashes)} trials in a row failed: {search.crashes[-1]}")
    if study.unfinished() or len(study.trials) < settings.trials:
        raise KeyboardInterrupt  # at Ctrl-C Ray Tune ends without an exception


def _budget(config: Config, dataset: Dataset) -> int:
    """Samples that a run of `config` sees until it ends."""
    order = order_of(config, dataset)
    return last_step(config, order) * order.global_batch


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _prepared(config: Config, storage: str) -> tuple[Config, Dataset]:
    """The config that trials share, and their training set. Raises BadInput if the objective cannot be measured."""
    dataset = prepare_into(storage, config.data.train)
    if config.evaluate.probe:
        probe_classes(dataset, config.evaluate.probe_classes)
    bank = prepare_into(storage, config.evaluate.train) if config.evaluate.train else dataset
    method = config.evaluate.method
    if method not in ("rankme", "probe") and not bank.labelled:
        raise BadInput(
            f"{bank.uri} has images without labels: --evaluate.method {method} needs them; take "
            "--evaluate.method rankme, or name labelled images with --evaluate.train"
        )
    epochs = min(config.train.epochs, config.saving.stop_after_epochs or config.train.epochs)
    every = config.evaluate.every_epochs or max(1, int(epochs) // 9)
    return config.with_overrides(
        {
            "data.train": dataset.uri,
            "evaluate.train": bank.uri,
            "evaluate.test": None,  # never the test set: the objective is measured on rows held out of the bank's
            "evaluate.every_epochs": min(every, config.train.epochs),
        }
    ), dataset


def _concurrent(config: Config) -> int:
    """Trials at once: as many as the cluster's GPUs allow at gpus_per_worker; one on a cluster without GPUs."""
    gpus, resources = ray.cluster_resources().get("GPU", 0.0), config.resources
    each = (resources.gpus_per_worker or 1.0) * max(resources.max_workers or 1, resources.min_workers)
    return max(1, int(gpus / each + 1e-6))


def _share(config: Config, concurrent: int) -> Share:
    """Each trial's share of the cluster. Raises BadInput if its workers do not fit into it."""
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    each = cpus / concurrent - TRIAL_CPUS
    try:
        return replace(share_of(config.resources, each, gpus / concurrent), part=each / cpus)
    except BadInput as error:
        each_gets = f"{concurrent} trials at once get {1 / concurrent:.0%} of the cluster each"
        raise type(error)(f"{each_gets}: {error}") from None


def _trial_config(config: Config, folder: Location, trial: FrozenTrial, share: Share, budget: int) -> dict[str, Any]:
    return {
        "run": trial.user_attrs["run"],
        "config": config.to_json(),
        "storage": folder.uri,
        "share": asdict(share),
        "alone": share.max_workers == 1,
        "objective": objective_of(config),
        "budget_samples": budget,
        "reported": sorted(trial.intermediate_values),
    }


class _SaveAtInterrupt(tune.Callback):
    """At Ctrl-C requests that the running trials save and end, before Tune stops them after ten seconds."""

    def __init__(self, folder: Location, search: StudySearch) -> None:
        self._folder, self._search, self._installed = folder, search, False

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._installed:
            return
        self._installed, tunes = True, signal.getsignal(signal.SIGINT)

        def interrupted(number: int, frame: Any) -> None:
            for trial in self._search.live.values():
                request_end(self._folder / trial.user_attrs["run"])
            assert callable(tunes)
            tunes(number, frame)

        signal.signal(signal.SIGINT, interrupted)


def _run(search: StudySearch, asha: StudyAsha | None, folder: Location, concurrent: int, share: Share) -> None:
    """Runs Tune. Its own records, which nothing reads, are kept in the sweep's folder only while it runs."""
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that fails has no objective
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer one prints although verbose is 0
    records = folder / "tune"
    # A trial of one worker trains in its Tune process, which the next trial reuses with all it has imported; a trial of
    # several starts a group of its own. Measured: the first step after 6 s instead of 25.
    takes = {"CPU": share.cpus, "GPU": share.gpus} if share.max_workers == 1 else {"CPU": TRIAL_CPUS}
    tuner = tune.Tuner(
        tune.with_resources(TrialRun, takes),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=asha,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=records.path,
            storage_filesystem=records.filesystem,
            failure_config=tune.FailureConfig(max_failures=0),  # StudySearch retries
            callbacks=[_SaveAtInterrupt(folder, search)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials save their own
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        with contextlib.suppress(OSError):
            records.delete()
