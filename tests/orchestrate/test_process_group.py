"""The process group of a group of workers: gloo's interface, NCCL's timeout, and the exception of one worker."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep, time
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.orchestrate import interface, train_fn
from simclr_ray.orchestrate.group_failure import cause_of
from simclr_ray.orchestrate.interface import GLOO_INTERFACE, bind_gloo, interface_of
from simclr_ray.orchestrate.process_group import ProcessGroupConfig, set_device_timeout

NOWHERE = "203.0.113.9"
"""An address for documentation (RFC 5737), which no machine has."""


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of(NOWHERE) is None
    for name, addresses in psutil.net_if_addrs().items():
        for primary in [each.address for each in addresses if each.family == socket.AF_INET][:1]:
            assert interface_of(primary) == name


@pytest.mark.parametrize(
    ("address", "named", "bound"),
    [("127.0.0.1", None, "lo"), ("127.0.0.1", "eth7", "eth7"), (NOWHERE, None, None)],
)
def test_gloo_is_bound_to_the_nodes_address_unless_the_user_names_an_interface(
    address: str, named: str | None, bound: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    monkeypatch.setattr(interface.ray.util, "get_node_ip_address", lambda: address)
    with monkeypatch.context() as patch:
        if named:
            patch.setenv(GLOO_INTERFACE, named)
        bind_gloo()
        assert os.environ.get(GLOO_INTERFACE) == bound
        os.environ.pop(GLOO_INTERFACE, None)


def waits_alone(seconds: float) -> float:
    """How long rank 0 waits in a collective that nobody joins."""
    set_device_timeout("cpu", seconds)
    start = time()
    if collective.rank() == 0:
        with pytest.raises(RuntimeError):
            collective.wait_for_all()
    else:
        sleep(3 * seconds)
    return time() - start


def test_the_timeout_of_one_kind_of_device_can_be_set() -> None:
    waited = run_workers(2, waits_alone, 1.0, group="torch")[0]
    assert 0.9 < waited < 2.9


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def fails_in_the_middle_of_a_step(settings: dict[str, SimpleNamespace]) -> None:
    """`train_fn` with an attempt in which rank 0 raises while its gradients are under way and the others wait for it
    in another collective."""
    under_way = []

    def attempt(task: SimpleNamespace, device: torch.device) -> None:
        (Path(task.folder) / f"{collective.rank()}").write_text(os.environ.get(GLOO_INTERFACE, ""))
        collective.wait_for_all()
        if collective.rank() == 0:
            under_way.append(dist.all_reduce(torch.zeros(1 << 20), async_op=True))
            (Path(task.folder) / "raised").write_text(str(time()))
            raise ValueError("a bug of rank 0")
        dist.recv(torch.zeros(1), src=0, tag=9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_fn, "attempt", attempt)
        patch.setattr(train_fn, "note_reservation", lambda run: None)
        train_fn.train_fn(settings)  # type: ignore[arg-type]


def test_the_exception_of_one_of_three_workers_ends_the_others_and_is_shown(cluster: None, tmp_path: Path) -> None:
    """To leave the group on an exception would wait for the peers: on gloo too, while a collective is under way."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    trainer = DataParallelTrainer(
        fails_in_the_middle_of_a_step,
        train_loop_config={"task": SimpleNamespace(run=None, folder=str(tmp_path), address=None)},
        backend_config=ProcessGroupConfig(backend="gloo", timeout_s=120),
        scaling_config=ScalingConfig(num_workers=3, resources_per_worker={"CPU": 0.3}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(max_failures=0)),
    )
    with pytest.raises(ray.train.TrainingFailedError) as failed:
        trainer.fit()
    assert time() - float((tmp_path / "raised").read_text()) < 15
    assert str(cause_of(failed.value)) == "a bug of rank 0"
    node = ray.util.get_node_ip_address()
    assert {(tmp_path / str(rank)).read_text() for rank in range(3)} == {interface_of(node)}
    ours = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in ours if "RayTrainWorker" in " ".join(child.cmdline())]
