"""How Ray Train forms and ends the process group of its workers: gloo's interface, NCCL's timeout, failures."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train.backend import BackendConfig
from ray.train.torch.config import TorchConfig, _TorchBackend

NCCL_TIMEOUT_S = 900
"""On the GPU workers wait for each other's compilers and data, not for saves: those are waited for on the CPU group."""
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # linux/sockios.h


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


def bind_gloo() -> None:
    """Binds gloo to the interface of the node's Ray address, unless the user names one.

    Gloo takes the address of the host's own name, which on Ubuntu is 127.0.1.1: no other host can connect to it.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault(GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """The network interface with this IPv4 address; None if there is none, or the system does not say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def set_device_timeout(device: str, seconds: float) -> None:
    """The timeout of collectives on this kind of device alone: a group has one timeout when it is formed."""
    assert dist.group.WORLD is not None
    dist.group.WORLD._get_backend(torch.device(device)).set_timeout(timedelta(seconds=seconds))
