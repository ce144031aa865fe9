"""Which cluster a command joins: not one whose head was killed, which ray.init would try for a quarter of an hour."""

import socket
from pathlib import Path

import pytest

from simclr_ray.config import ResourcesConfig
from simclr_ray.data.order import Order
from simclr_ray.orchestrate.cluster import gpus_have_bf16, recorded_cluster_ended
from simclr_ray.orchestrate.pretrain import _share


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


def test_a_small_batch_takes_no_more_gpus_than_it_has_slices_for() -> None:
    order = Order(seed=0, rows=500, slice_rows=32, global_batch=96, pass_size=96)
    assert _share(ResourcesConfig(), order, 64.0, 8.0).max_workers == 3
    assert _share(ResourcesConfig(), order, 64.0, 2.0).max_workers == 2
    assert _share(ResourcesConfig(max_workers=8), order, 64.0, 8.0).max_workers == 8, "which is refused, in words"
