"""The mesh: sums of small tensors by direct connections, the same bits everywhere, and the loss of a peer."""

from __future__ import annotations

import os
import signal
import socket
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.group import mesh
from simclr_ray.group.mesh import MOST_BYTES, PeerLost, form_mesh
from worker_processes import worker_context

WORKERS = 3
SIZES = [1, 7, MOST_BYTES // 8, MOST_BYTES // 8 + 1]
"""Elements of float64: the last is too large for the mesh."""


def own_values(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    sizes = [torch.randn(size, generator=generator, dtype=torch.float64) for size in SIZES]
    other = [torch.randn(3, 5, generator=generator).T, torch.tensor(rank + 1.5), torch.randn(4, generator=generator)]
    return [*sizes, *other, other[-1].bfloat16(), torch.arange(6) * (rank + 1)]


def sums() -> list[torch.Tensor]:
    return [collective.sum_over_workers(values) for values in own_values(collective.rank())]


def test_all_workers_add_in_rank_order() -> None:
    workers = [own_values(rank) for rank in range(WORKERS)]
    expected = [(a + b) + c for a, b, c in zip(*workers, strict=True)]
    found = run_workers(WORKERS, sums)
    for results in found:
        for result, total, first in zip(results, expected, found[0], strict=True):
            assert torch.equal(result, first), "all have the same bits"
            assert result.numel() * result.element_size() > MOST_BYTES or torch.equal(result, total)
            torch.testing.assert_close(result, total)


def gathered() -> tuple[list[torch.Tensor], list[int], list[Any]]:
    rank = collective.rank()
    rows = collective.gather_rows(torch.full((rank + 1, 2), float(rank)), range(1, WORKERS + 1))
    return rows.tolist(), collective.maximum_over_workers([rank, -rank]), collective.gather_objects({"rank": rank})


def test_rows_and_objects_are_gathered_in_rank_order() -> None:
    rows = [[float(rank)] * 2 for rank in range(WORKERS) for _ in range(rank + 1)]
    expected = (rows, [WORKERS - 1, 0], [{"rank": rank} for rank in range(WORKERS)])
    assert run_workers(WORKERS, gathered) == [expected] * WORKERS


def without_the_last(how: str) -> float:
    """How long the others wait for a sum in which the last worker is missing."""
    collective.wait_for_all()
    begin = monotonic()
    if collective.rank() == WORKERS - 1:
        if how == "leaves":
            collective.leave_group()
            collective.join_group(mesh_of_one())
        return 0.0
    with pytest.raises(PeerLost):
        collective.sum_over_workers(torch.zeros(3))
    waited = monotonic() - begin
    collective.leave_group()
    collective.join_group(mesh_of_one())
    return waited


def mesh_of_one() -> Any:
    from simclr_ray.group.gloo import form_group

    return form_group("", "alone", 0, 1, lambda: False, 1.0)


def test_the_end_of_a_peer_is_noticed_at_once() -> None:
    assert max(run_workers(WORKERS, without_the_last, "leaves")) < 1.0


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))


def test_strangers_are_not_let_in(store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without the secret connects first."""
    accepted = []

    def with_stranger(end: socket.socket, secret: bytes, peers: dict[int, socket.socket]) -> None:
        accepted.append(end)
        let_in(end, secret, peers)

    let_in = mesh._let_in
    monkeypatch.setattr(mesh, "_let_in", with_stranger)

    def lost() -> bool:
        if not accepted:
            host, port, _ = store.get("mesh-0").decode().split()
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(bytes(mesh.SECRET_BYTES) + (1).to_bytes(8, "big"))
        return len(accepted) == 1

    with pytest.raises(PeerLost, match="while the group was formed"):
        form_mesh(store, "127.0.0.1", 0, 2, lost, 10.0)
    assert accepted[0].fileno() == -1, "closed"


def freezes(port: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
    _kept = form_mesh(store, "127.0.0.1", 1, 2, lambda: False, 10.0)
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_frozen_peer_is_given_up_when_it_is_said_to_be_lost(store: dist.TCPStore) -> None:
    peer = worker_context().Process(target=freezes, args=(store.port,))
    peer.start()
    formed: list[float] = []
    ours = form_mesh(store, "127.0.0.1", 0, 2, lambda: bool(formed) and monotonic() > formed[0] + 1.0, 10.0)
    formed.append(monotonic())
    try:
        with pytest.raises(PeerLost, match="does not answer"):
            ours.all_gather(torch.zeros(1))
        assert 0.9 < monotonic() - formed[0] < 5.0
    finally:
        ours.close()
        peer.kill()
