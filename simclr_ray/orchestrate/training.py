"""Trains a run in attempts: once in this process, in this process with retries, or in a group under Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from ray.experimental import internal_kv

from simclr_ray.config import AugmentConfig, Config
from simclr_ray.data.augment.views import augment_pair
from simclr_ray.model.build import draw_encoder
from simclr_ray.orchestrate.attempt import attempt
from simclr_ray.orchestrate.failure import FailedAttempts, described, is_final, note_failure
from simclr_ray.orchestrate.interrupt import saving_at_interrupt
from simclr_ray.orchestrate.task import Task
from simclr_ray.orchestrate.watch import progress_line, rows_followed
from simclr_ray.storage.lease import holds
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.branches import require_masks_fit
from simclr_ray.train.control import Interrupted
from simclr_ray.train.run_log import note_giving_up


def train(
    task: Task, until: int, on_row: Callable[[Row | None], None] | None, attempts: Callable[[Task], None]
) -> None:
    """Runs `attempts` (one of the three ways to train) with a progress line, or with `on_row` (see pretrain).

    `until`: the last step, for the progress line. If the run is given up, an event records the cause.
    """
    internal_kv._internal_kv_del(task.end_key)
    if on_row:
        watching = rows_followed(task.progress_key, on_row)
    else:
        watching = progress_line(task.progress_key, until, task.config.train.global_batch)
    with watching, _giving_up_noted(task):
        attempts(task)


@contextmanager
def _giving_up_noted(task: Task) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        raise  # not given up: another attempt resumes the run
    except Exception as error:
        with suppress(OSError):
            if holds(task.run, task.driver):
                note_giving_up(task.run, described(error))
        raise


def require_model(config: Config) -> None:
    """Raises BadInput for a network that its library does not have, or not for this size or with stochastic depth."""
    if ":" in config.model.arch:
        with torch.device("meta"):
            encoder = draw_encoder(config.model, config.augment.size)
        if config.model.drop_path:
            require_masks_fit(encoder, config.augment.size)


def warm_up() -> None:
    """Does what the first step would wait for: compiles Numba's kernels, and imports what torch imports lazily."""
    import torch._dynamo  # noqa: F401 (takes 1.5 s, at the latest when a process makes its first optimizer)
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    config = AugmentConfig(size=8)
    augment_pair(np.zeros((8, 8, 3), np.uint8), 0, 0, 0, config, np.empty((2, 8, 8, 3), np.uint8))


def train_once(task: Task) -> None:
    """This process is the only worker; whatever ends its attempt is raised."""
    attempt(task, torch.device("cuda" if task.share.gpus else "cpu"))


def train_alone(task: Task) -> None:
    """This process is the only worker: on its own machine a group has no advantage, and takes seconds to start.

    Failures are retried as a group's are: until ATTEMPTS in a row have brought no new checkpoint.
    """
    failed = FailedAttempts(task.run)
    with saving_at_interrupt(task.run):
        while True:
            try:
                return train_once(task)
            except Exception as error:
                if isinstance(error, Interrupted) or is_final(error) or failed.one_too_many():
                    raise
                note_failure(task.driver, error)


def train_in_group(task: Task) -> None:
    """Workers of a group under Ray Train."""
    from simclr_ray.orchestrate.group import train_in_group as in_group  # Ray Train takes seconds to import

    in_group(task)
