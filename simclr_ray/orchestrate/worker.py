"""A training worker under Ray Train, as the loop sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.experimental import internal_kv

from simclr_ray.train import collective


@dataclass(frozen=True)
class RayWorker:
    """`progress_key`: where in Ray's key-value store the driver looks for the newest metrics row; no extra process."""

    progress_key: str

    @property
    def rank(self) -> int:
        return collective.rank()

    @property
    def size(self) -> int:
        return collective.size()

    @property
    def device(self) -> torch.device:
        return ray.train.torch.get_device()

    def report(self, row: dict[str, Any]) -> None:
        internal_kv._internal_kv_put(self.progress_key, json.dumps(row), overwrite=True)
