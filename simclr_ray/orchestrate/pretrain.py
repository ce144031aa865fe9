"""A pretraining run from its first start to its encoder, over any number of interruptions: `pretrain`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.experimental import internal_kv
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig  # ray.train's own names are typed as V1

from simclr_ray.config import FORMAT, BadInput, Config, EvaluateConfig, format_of, science_changes
from simclr_ray.data.dataset import Dataset, is_dataset, open_dataset
from simclr_ray.data.object_store import patiently
from simclr_ray.data.rows import Row, read_rows
from simclr_ray.data.storage import Location, open_location
from simclr_ray.evaluate.labels import require_same_classes
from simclr_ray.export import FILE_NAME
from simclr_ray.orchestrate.claim import drop_claim
from simclr_ray.orchestrate.cluster import Share, join_or_start, rank_0_selector, share_of
from simclr_ray.orchestrate.failure import (
    ATTEMPTS,
    StopOnFailure,
    cause_of,
    described,
    lost_while_starting,
    newest_step,
)
from simclr_ray.orchestrate.lease import holds, lease
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.orchestrate.train_fn import Task, ask_to_end, train_fn
from simclr_ray.orchestrate.watch import progress_line, rows_followed
from simclr_ray.train.attempt import last_step, order_of
from simclr_ray.train.control import Interrupted
from simclr_ray.train.metrics import note_giving_up

NEVER_S = 1e9
"""Ray's own resize monitor would lose the steps since the last save: it is off."""


@dataclass(frozen=True)
class RunResult:
    """What the run folder says at the end."""

    path: str
    step: int
    metrics: dict[str, Any]
    """The last row of metrics.jsonl."""


def pretrain(
    config: Config,
    name: str,
    storage: str,
    *,
    share: Share | None = None,
    alone: bool = False,
    on_row: Callable[[Row | None], None] | None = None,
) -> RunResult:
    """Starts or resumes the run `STORAGE/NAME`, leaves a finished one as it is, and gives what its folder holds.

    `share`: of the cluster, where several runs share it; None: as the config says. `alone`: this process is the only
    worker and trains by itself, without a group that could be restarted: whatever ends the attempt is raised. `on_row`
    is called with the newest metrics row, on a thread, in place of a progress line on the terminal.

    Raises BadInput for whatever the caller can mend: a changed science value, data that are not there, a batch or a
    number of workers that does not fit. Another failure is raised as it came; what was saved until then stays.
    """
    run = run_folder(name, storage)
    config, earlier = _same_science(run, config)
    if earlier and (run / FILE_NAME).exists():
        return result_of(run)
    dataset = _prepared(config.data.train, storage, earlier.data.train if earlier else None)
    order = order_of(config, dataset)
    join_or_start()
    resources = ray.cluster_resources()
    share = share or share_of(config.machine, resources.get("CPU", 0.0), resources.get("GPU", 0.0))
    order.rows_per_pass(share.max_workers)
    config, bank, test = _resolved(config, dataset, storage, share, earlier)
    with lease(run) as driver:
        config, _ = _same_science(run, config)  # another driver may have been first since
        (run / "config.json").write_bytes(config.to_json().encode())
        task = Task(
            config=config, dataset=dataset, bank=bank, test=test, run=run, driver=driver, share=share, alone=alone
        )
        _train(task, last_step(config, order), on_row)
    return result_of(run)


def _train(task: Task, until: int, on_row: Callable[[Row | None], None] | None) -> None:
    internal_kv._internal_kv_del(task.end_key)
    if on_row:
        watching = rows_followed(task.progress_key, on_row)
    else:
        watching = progress_line(task.progress_key, until, task.config.train.global_batch)
    with watching, _giving_up_noted(task):
        if task.alone:
            train_fn({"task": task})
        else:
            _fit(task)


@contextmanager
def _giving_up_noted(task: Task) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        raise  # somebody goes on
    except Exception as error:
        with suppress(OSError):
            if holds(task.run, task.driver):
                note_giving_up(task.run, described(error))
        raise


def result_of(run: Location) -> RunResult:
    rows = read_rows(run / "metrics.jsonl")
    return RunResult(run.uri, rows[-1]["step"] if rows else 0, rows[-1] if rows else {})


def run_folder(name: str, storage: str) -> Location:
    """`STORAGE/NAME`, made and tried. Raises BadInput."""
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


def _same_science(run: Location, config: Config) -> tuple[Config, Config | None]:
    """`config` with what the first start resolved, and that start's config if there was one.

    Raises BadInput naming the science values that are others now, and for an unfinished run of another format.
    """
    file = run / "config.json"
    if not file.exists():
        return config, None
    text = file.read_bytes().decode()
    if format_of(text) != FORMAT and not (run / FILE_NAME).exists():
        raise BadInput(
            f"{run} was begun by a version of simclr_ray with another order of samples (format {format_of(text)}, this "
            f"is {FORMAT}): resuming would repeat and omit samples; finish it with that version, or use another --name"
        )
    earlier = Config.from_json(text)
    if config.train.precision == "auto":
        config = config.with_overrides({"train.precision": earlier.train.precision})
    changes = science_changes(earlier, config)
    if changes:
        listed = ", ".join(f"{key} was {old!r}, is now {new!r}" for key, (old, new) in changes.items())
        raise BadInput(f"{run} was started with other settings ({listed}): use another --name, or the old values")
    return config, earlier


def _prepared(source: str, storage: str, earlier: str | None) -> Dataset:
    """The dataset of `source`. A resumed run keeps the one that was prepared for it, even if the source has changed."""
    if earlier and is_dataset(earlier) and not is_dataset(source):
        dataset = open_dataset(earlier)
        if dataset.source["spec"] == source:
            return dataset
    return prepare_into(storage, source)


def _resolved(
    config: Config, dataset: Dataset, storage: str, share: Share, earlier: Config | None
) -> tuple[Config, Dataset | None, Dataset | None]:
    """The config as the run folder keeps it, with the datasets of the check during training."""
    resolved: dict[str, Any] = {"data.train": dataset.uri}
    if config.train.precision == "auto":
        resolved["train.precision"] = "bf16" if share.gpus else "float32"
    bank = test = None
    settings, before = config.evaluate, earlier.evaluate if earlier else EvaluateConfig()
    if settings.every_epochs:
        bank = _prepared(settings.train, storage, before.train) if settings.train else dataset
        resolved["evaluate.train"] = bank.uri
    if bank and settings.test:
        test = _prepared(settings.test, storage, before.test)
        resolved["evaluate.test"] = test.uri
    if bank and settings.method != "rankme":
        require_same_classes(bank, test or bank)
    return config.with_overrides(resolved), bank, test


def _fit(task: Task) -> None:
    """Runs Ray Train to the end of the run, again where a group could not even start because a machine went."""
    newest, fruitless = newest_step(task.run), 0
    while True:
        try:
            return _saved_at_interrupt(_trainer(task).fit, task.run)
        except ray.train.TrainingFailedError as error:
            before, newest = newest, newest_step(task.run)
            fruitless = fruitless + 1 if newest == before else 1
            if fruitless == ATTEMPTS or not lost_while_starting(error):
                raise cause_of(error) from None


def _trainer(task: Task) -> ray.train.torch.TorchTrainer:
    """Ray keeps no checkpoint of its own, so nothing of it can be torn."""
    share, run = task.share, task.run
    drop_claim(run)
    elastic = share.min_workers < share.max_workers
    run_config = RunConfig(
        name="ray",
        storage_path=run.path,
        storage_filesystem=run.filesystem,
        failure_config=FailureConfig(max_failures=-1),
        callbacks=[StopOnFailure(run, task.driver)],
    )
    if run.local is None:
        patiently(run.uri, lambda: run_config.storage_context)  # Ray tries its storage here, and only once
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    return ray.train.torch.TorchTrainer(
        train_fn,
        train_loop_config={"task": task},
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if share.gpus else "gloo",
            # The others wait in a collective while rank 0 insists on its last save.
            timeout_s=int(task.config.machine.save_patience_s) + 1800,
        ),
        scaling_config=ScalingConfig(
            num_workers=(share.min_workers, share.max_workers) if elastic else share.max_workers,
            use_gpu=share.gpus > 0,
            resources_per_worker=resources,
            label_selector=rank_0_selector(share),
            elastic_resize_monitor_interval_s=NEVER_S,
        ),
        run_config=run_config,  # type: ignore[arg-type]
    )


def _saved_at_interrupt(fit: Callable[[], object], run: Location) -> None:
    """Calls `fit`; at Ctrl-C the run is asked to save and end before KeyboardInterrupt is raised, at the next at once.

    On a thread, because on the main one Ray answers Ctrl-C itself, without a save and with the code of a failure.
    """
    ended: Future[None] = Future()

    def call() -> None:
        try:
            fit()
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised by the caller's thread)
            ended.set_exception(error)

    Thread(target=call, name="fit", daemon=True).start()
    try:
        ended.result()
    except KeyboardInterrupt:
        print("\nsaving; Ctrl-C again ends at once", file=sys.stderr)
        ask_to_end(run)
        ended.result()
        raise
