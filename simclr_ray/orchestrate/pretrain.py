"""`pretrain`: starts or resumes a pretraining run and trains it, over any number of interruptions, to its encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import ray

from simclr_ray.config import (
    FORMAT,
    BadInput,
    Config,
    DistillationConfig,
    EvaluateConfig,
    ResourcesConfig,
    SupervisedConfig,
    as_resolved,
    config_types,
    format_of,
    science_changes,
)
from simclr_ray.data.dataset import Dataset, is_dataset, open_dataset
from simclr_ray.data.order import Order, last_step, order_of
from simclr_ray.evaluate.fitted import allowing_for_fit, fitted_checks, learns_from
from simclr_ray.evaluate.labels import labelled_classes, probe_classes, require_teachers_classes
from simclr_ray.orchestrate.cluster import gpus_have_bf16, join_or_start, once_large_enough, started_here
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.orchestrate.task import Task
from simclr_ray.planning.shares import Share, share_of
from simclr_ray.storage.lease import lease, require_free
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import CONFIG, ENCODER, INITIAL, METRICS, TEACHER, Row, config_text, read_rows
from simclr_ray.train.tracking.build import require_tracking

ALL_KEYS = frozenset(config_types())


@dataclass(frozen=True)
class RunResult:
    """Where a run is and how far it was trained, read from its run folder."""

    path: str
    step: int
    metrics: dict[str, Any]
    """The last row of metrics.jsonl."""


def pretrain(
    config: Config,
    name: str,
    storage: str,
    *,
    requested: Set[str] = ALL_KEYS,
    share: Share | None = None,
    alone: bool = False,
    on_row: Callable[[Row | None], None] | None = None,
) -> RunResult:
    """Starts or resumes the run `STORAGE/NAME`, or leaves a finished one unchanged; returns its result.

    `requested`: the dotted keys that the user set; the others are the recipe's, and its check during training is fitted
    to what the data allow. `share`: the run's share of the cluster; None: from the config. `alone`: this process is the
    only worker and does not retry: whatever ends the attempt is raised. `on_row` is called on a thread with the newest
    metrics row, instead of a progress line on the terminal.

    Raises BadInput for what the user can correct. Other failures are raised unchanged; checkpoints saved by then stay.
    """
    require_tracking(config.logging)
    run = run_folder(name, storage)
    config, earlier = _same_science(run, config, requested)
    if earlier and (run / ENCODER).exists():
        _require_same_data(run, config.data.train, storage, earlier.data.train)
        return result_of(run)
    if not alone:  # a trial follows on processes that Ray may still be ending
        require_free(run)
    loading = ThreadPoolExecutor(1).submit(_load_training, config)
    dataset = _prepared(config.data.train, storage, earlier.data.train if earlier else None)
    order = order_of(config, dataset)
    join_or_start()
    share = share or once_large_enough(lambda: _share(config.resources, order), config.elasticity.start_wait_s)
    order.rows_per_pass(share.max_workers)
    training = loading.result()
    config, bank, test = _resolved(config, requested, dataset, storage, share, earlier)
    with lease(run) as driver:
        # Again, under the lease: another driver may have started it since.
        config = _started(run, *_same_science(run, config))
        task = Task(config=config, dataset=dataset, bank=bank, test=test, run=run, driver=driver, share=share)
        training.train(task, last_step(config, order), on_row, _attempts(training, share, alone=alone))
    return result_of(run)


def _load_training(config: Config) -> ModuleType:
    """Imports torch and other slow modules, in parallel with the preparation of data and the start of Ray."""
    training = import_module("simclr_ray.orchestrate.training")
    training.require_model(config)
    if config.resources.max_workers in (None, 1):  # with more, other processes train
        training.warm_up()
    return training


def _share(resources: ResourcesConfig, order: Order) -> Share:
    """Of the whole cluster; no more workers than have something to do, unless the user has set a number."""
    cluster = ray.cluster_resources()
    share = share_of(resources, cluster.get("CPU", 0.0), cluster.get("GPU", 0.0))
    if resources.max_workers is None:
        return replace(share, max_workers=max(share.min_workers, min(share.max_workers, order.slices_per_pass)))
    return share


def _attempts(training: ModuleType, share: Share, *, alone: bool) -> Callable[[Task], None]:
    """One of the three ways to train; a group under Ray Train if there are other processes or machines to restart."""
    if alone:
        return training.train_once
    return training.train_alone if started_here() and share.max_workers == 1 else training.train_in_group


def result_of(run: Location) -> RunResult:
    rows = read_rows(run / METRICS)
    return RunResult(run.uri, rows[-1]["step"] if rows else 0, rows[-1] if rows else {})


def run_folder(name: str, storage: str) -> Location:
    """`STORAGE/NAME`, created and checked to be writable. Raises BadInput."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise BadInput(f"--name {name!r}: use letters, digits, dots, dashes and underscores")
    run = open_location(storage) / name
    try:
        run.make_folder()
        (run / ".writable").write_bytes(b"")
        (run / ".writable").delete()
    except OSError as error:
        raise BadInput(f"cannot write to --storage {storage}: {str(error).splitlines()[0]}") from None
    return run


def _same_science(run: Location, config: Config, requested: Set[str] = ALL_KEYS) -> tuple[Config, Config | None]:
    """`config` with the values that the first start resolved, and that start's config if there was one.

    Raises BadInput naming the science values that have changed, and for an unfinished run of another format.
    """
    text = config_text(run)
    if text is None:  # the initial weights are read once, when the run folder gets them
        return _with_known_teacher(config), None
    if format_of(text) != FORMAT and not (run / ENCODER).exists():
        raise BadInput(
            f"{run} was begun by a version of simclr_ray with another order of samples (format {format_of(text)}, this "
            f"is {FORMAT}): resuming would repeat and omit samples; finish it with that version, or use another --name"
        )
    earlier = Config.from_json(text)
    config = _with_digests(as_resolved(config, earlier))
    changes = science_changes(earlier, allowing_for_fit(config, earlier, requested))
    if changes:
        listed = ", ".join(f"{key} was {old!r}, is now {new!r}" for key, (old, new) in changes.items())
        raise BadInput(f"{run} was started with other settings ({listed}): use another --name, or the old values")
    return config, earlier


def _prepared(source: str, storage: str, earlier: str | None) -> Dataset:
    """The dataset of `source`. A resumed run keeps the one of its first start, even if the source has changed."""
    if earlier and is_dataset(earlier) and not is_dataset(source):
        dataset = open_dataset(earlier)
        if dataset.source["spec"] == source:
            return dataset
    return prepare_into(storage, source)


def _with_digests(config: Config) -> Config:
    """The config with the sha256 of the weights that it names, where it lacks them."""
    if config.model.init_sha256 is None:
        config, _ = _with_initial(config)
    return _with_known_teacher(config)


def _with_known_teacher(config: Config) -> Config:
    """The config with its teacher's sha256 and classes, where it lacks the former; checks need the classes."""
    if isinstance(config.method, DistillationConfig) and config.method.teacher_sha256 is None:
        config, _ = _with_teacher(config)
    return config


def _with_initial(config: Config) -> tuple[Config, bytes | None]:
    """The config with the sha256 of the weights that model.init names, and those weights as a file."""
    if config.model.init is None:
        return config, None
    from simclr_ray.export.published import initial_of  # imports torch

    content, sha256 = initial_of(config)
    return config.with_overrides({"model.init_sha256": sha256}), content


def _with_teacher(config: Config) -> tuple[Config, bytes | None]:
    """The config of a distillation with the sha256 and the classes of its teacher, and the teacher as a file."""
    if not isinstance(config.method, DistillationConfig):
        return config, None
    from simclr_ray.export.teacher import teacher_of  # imports torch

    content, resolved = teacher_of(config)
    return config.with_overrides(resolved), content


def _started(run: Location, config: Config, earlier: Config | None) -> Config:
    """Writes initial weights and teacher, at the first start, and then the config, which promises that they exist."""
    if not earlier:
        config, initial = _with_initial(config)
        config, teacher = _with_teacher(config)
        for name, content in ((INITIAL, initial), (TEACHER, teacher)):
            if content:
                (run / name).write_bytes(content)
    (run / CONFIG).write_bytes(config.to_json().encode())
    return config


def _require_same_data(run: Location, source: str, storage: str, earlier: str) -> None:
    """Raises BadInput if the finished run was trained on other data than `source`."""
    if source == earlier or not is_dataset(earlier):  # data that are gone cannot be compared
        return
    before = open_dataset(earlier)
    if _prepared(source, storage, earlier).fingerprint != before.fingerprint:
        raise BadInput(
            f"{run} is finished, and was trained on {before.source['spec']}, not {source}: use another --name"
        )


def _resolved(
    config: Config, requested: Set[str], dataset: Dataset, storage: str, share: Share, earlier: Config | None
) -> tuple[Config, Dataset | None, Dataset | None]:
    """The config with every open value resolved, as config.json keeps it, and bank and test set of the check."""
    resolved: dict[str, Any] = {"data.train": dataset.uri}
    if config.train.precision == "auto":
        from simclr_ray.train.precision import auto_precision  # imports torch, which is loaded by now

        resolved["train.precision"] = auto_precision(on_gpu=share.gpus > 0, gpu_has_bf16=gpus_have_bf16())
    if isinstance(config.method, SupervisedConfig):
        resolved["method.classes"] = labelled_classes(dataset, config.method.classes)
    if config.evaluate.probe:
        resolved["evaluate.probe_classes"] = probe_classes(dataset, config.evaluate.probe_classes)
    settings, before = config.evaluate, earlier.evaluate if earlier else EvaluateConfig()
    if not settings.every_epochs:
        return config.with_overrides(resolved), None, None
    if settings.method == "probe":  # which needs neither bank nor test set
        return config.with_overrides(resolved), dataset, None
    bank = _prepared(settings.train, storage, before.train) if settings.train else dataset
    learned = not earlier and learns_from(config, bank, dataset)  # a run that was begun so goes on so
    config, test, line = fitted_checks(
        config, requested, bank, lambda source: _prepared(source, storage, before.test), learned=learned
    )
    if line:
        print(line, flush=True)
    if isinstance(config.method, DistillationConfig) and config.evaluate.method != "rankme":
        require_teachers_classes(bank, config.method.classes or 0)
    resolved |= {"evaluate.train": bank.uri} | ({"evaluate.test": test.uri} if test else {})
    return config.with_overrides(resolved), bank if config.evaluate.every_epochs else None, test
