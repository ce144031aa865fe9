"""How Ray Train forms and ends the process group of its workers: NCCL's timeout, failures."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from ray.train.backend import BackendConfig
from ray.train.torch.config import TorchConfig, _TorchBackend

from simclr_ray.orchestrate.interface import bind_gloo

NCCL_TIMEOUT_S = 900
"""On the GPU workers wait for each other's compilers and data, not for saves: those are waited for on the CPU group."""


class ProcessGroupConfig(TorchConfig):
    """TorchConfig with the backend below."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, TorchConfig)
        worker_group.execute(bind_gloo)
        super().on_start(worker_group, backend_config)
        if "nccl" in (backend_config.backend or ""):
            worker_group.execute(set_device_timeout, "cuda", NCCL_TIMEOUT_S)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Nothing: after a planned end `train_fn` has left the group. After a failure to leave it would wait for
        collectives in which no other worker is; Ray ends the processes."""


def set_device_timeout(device: str, seconds: float) -> None:
    """The timeout of collectives on this kind of device alone: a group has one timeout when it is formed."""
    assert dist.group.WORLD is not None
    dist.group.WORLD._get_backend(torch.device(device)).set_timeout(timedelta(seconds=seconds))
