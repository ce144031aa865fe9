"""Which cluster a command joins, not one whose head was killed, and how long it waits for its machines to boot."""

import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import ray

from simclr_ray.config import BadInput, ResourcesConfig
from simclr_ray.data.order import Order
from simclr_ray.orchestrate.cluster import gpus_have_bf16, once_large_enough, recorded_cluster_ended
from simclr_ray.orchestrate.pretrain import _share
from simclr_ray.planning.shares import Share, TooSmall, share_of


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `ray start` would record a cluster of this test's own."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_a_cluster_that_listens_is_joined(recorded: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        recorded.write_text(f"127.0.0.1:{server.getsockname()[1]}\n")
        assert not recorded_cluster_ended()


def test_the_record_of_a_killed_head_is_passed_over(recorded: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    recorded.write_text(f"127.0.0.1:{port}\n")
    assert recorded_cluster_ended()


def test_an_address_that_the_user_gave_is_not_doubted(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    recorded.write_text(f"127.0.0.1:{port}\n")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert not recorded_cluster_ended()


@pytest.mark.parametrize("text", [None, "", "no address"])
def test_no_record_means_no_ended_cluster(recorded: Path, text: str | None) -> None:
    if text is not None:
        recorded.write_text(text)
    assert not recorded_cluster_ended()


@pytest.mark.parametrize(
    ("kinds", "have"),
    [
        (("H100", "L4", "A10G", "GeForce-RTX-3090"), True),
        (("T4",), False),
        (("A100", "V100"), False),
        (("GeForce-GTX-1080-Ti",), False),
        ((), True),
    ],
)
def test_old_gpus_have_no_bf16(kinds: tuple[str, ...], have: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 8.0, "GPU": 1.0} | {f"accelerator_type:{kind}": 1.0 for kind in kinds}
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    assert gpus_have_bf16() == have


def test_a_small_batch_takes_no_more_gpus_than_it_has_slices_for(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(seed=0, rows=500, slice_rows=32, global_batch=96, pass_size=96)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 8.0})
    assert _share(ResourcesConfig(), order).max_workers == 3
    assert _share(ResourcesConfig(max_workers=8), order).max_workers == 8, "which is refused, in words"
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 2.0})
    assert _share(ResourcesConfig(), order).max_workers == 2


@pytest.fixture
def booting(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A joined cluster of one machine, to which another comes at each look."""
    machines = count(1)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0 * next(machines)})
    monkeypatch.setattr("simclr_ray.orchestrate.cluster.started_here", lambda: False)
    monkeypatch.setattr("simclr_ray.orchestrate.cluster.ASK_EVERY_S", 0.01)
    return machines


def booted(resources: ResourcesConfig) -> Share:
    cluster = ray.cluster_resources()
    return share_of(resources, cluster["CPU"], cluster.get("GPU", 0.0))


@pytest.mark.usefixtures("booting")
def test_a_run_waits_for_machines_that_boot(capsys: pytest.CaptureFixture[str]) -> None:
    three = ResourcesConfig(min_workers=3, max_workers=3, cpus_per_worker=3.5)
    assert once_large_enough(lambda: booted(three), wait_s=60).max_workers == 3
    told = capsys.readouterr().out
    assert told.count("waiting up to 60 s for machines (elasticity.start_wait_s): resources.min_workers 3 need") == 1


@pytest.mark.usefixtures("booting")
def test_machines_that_do_not_come_are_waited_for_so_long_only() -> None:
    with pytest.raises(TooSmall, match="GPUs"):
        once_large_enough(lambda: booted(ResourcesConfig(gpus_per_worker=1.0)), wait_s=0.05)


def test_what_more_machines_do_not_help_is_refused_at_once(booting: Iterator[int]) -> None:
    with pytest.raises(BadInput, match="NCCL"):
        once_large_enough(lambda: booted(ResourcesConfig(gpus_per_worker=0.5, max_workers=2)), wait_s=60)
    assert next(booting) == 2


def test_a_cluster_of_its_own_does_not_grow(booting: Iterator[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simclr_ray.orchestrate.cluster.started_here", lambda: True)
    with pytest.raises(TooSmall):
        once_large_enough(lambda: booted(ResourcesConfig(min_workers=3, cpus_per_worker=3.5)), wait_s=60)
    assert next(booting) == 2
