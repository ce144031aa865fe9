"""Which cluster a command joins: not one whose head was killed, which ray.init would try for a quarter of an hour."""

import socket
from pathlib import Path

import pytest

from simclr_ray.orchestrate.cluster import recorded_cluster_ended


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
