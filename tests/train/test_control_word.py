"""Which collectives the control word takes, and that no worker goes on while rank 0 saves."""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.config import Config
from simclr_ray.data.order import Order
from simclr_ray.train.batch import Batch
from simclr_ray.train.committed import Committed
from simclr_ray.train.control import Action
from simclr_ray.train.control_word import ControlWord
from simclr_ray.train.state import initial_state
from simclr_ray.train.worker import LocalWorker, Worker
from small_runs import TINY

SAVE_S = 0.5


class SlowRecorder:
    """Decides `action`; its saves take SAVE_S and write `file`."""

    saved_step = 0

    def __init__(self, action: Action, file: Path) -> None:
        self._action, self._file = action, file

    def decide(self, worker: Worker, step: int) -> Action:
        return self._action

    def save_is_due(self, step: int) -> bool:
        return False

    def save(self, *_: object, **__: object) -> None:
        sleep(SAVE_S)
        self._file.write_text("")


def after_a_step(action: Action, file: Path) -> tuple[int, bool]:
    """The collectives of `after_step` on this worker, and whether it went on after the save."""
    calls, config = [], Config()
    order = Order(seed=1, rows=64, slice_rows=8, global_batch=32, pass_size=32)
    recorder: Any = SlowRecorder(action, file) if collective.rank() == 0 else None
    state = initial_state(TINY, torch.device("cpu"))
    committed = Committed(state, recoverable=False)
    control = ControlWord(LocalWorker(torch.device("cpu")), recorder, order, config.data.max_bad_fraction, committed)
    batch = Batch(0, torch.zeros(4, 2, 8, 8, 3), ids=np.arange(4), bad=np.zeros(4, bool))
    with pytest.MonkeyPatch.context() as patch:
        all_reduce = torch.distributed.all_reduce
        patch.setattr(torch.distributed, "all_reduce", lambda *a, **k: calls.append(a) or all_reduce(*a, **k))
        control.after_step(state, batch, None, last=False)
    return len(calls), file.exists()


def test_all_workers_wait_for_a_save_on_the_cpu_and_take_no_other_step_for_it(tmp_path: Path) -> None:
    """Otherwise the others would wait in the next step's collective, which has the accelerator's shorter timeout."""
    assert run_workers(3, after_a_step, Action.SAVE, tmp_path / "saved", group="torch") == [(2, True)] * 3
    assert run_workers(3, after_a_step, Action.CONTINUE, tmp_path / "none", group="torch") == [(1, False)] * 3
