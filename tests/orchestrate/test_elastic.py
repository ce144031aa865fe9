"""Elastic runs under Ray: growth, notices and lost nodes; the result is compared with that of one worker."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from time import sleep, time
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from commands import events, finish, sizes, start, starts, trains_with
from fake_metadata import fake_metadata
from same import assert_same_as_one_worker
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows

LAST_WAIT_S = 600.0
NODE_CPUS = 2  # one worker and its data workers
SETTINGS = {
    "train.precision": "float64",
    "train.epochs": 90,
    "train.global-batch": 128,
    "evaluate.every-epochs": 0,
    "augment.size": 16,
    "resources.min-workers": 1,
    "resources.max-workers": 2,
    "resources.cpus-per-worker": 1.5,
    "resources.data-cpus": 0.5,
    "saving.every-steps": 1000,
    "saving.every-s": 8,
    "logging.ledger": True,
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that never trains, as in clusters/."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_new_node_joins_the_group_as_it_is_and_may_be_lost_again(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=NODE_CPUS)
    run = tmp_path / "elastic"
    process = start(tmp_path, "elastic", 1, ray_address=cluster.address, **SETTINGS | {"train.epochs": 1000})
    trains_with(run, process, 1)
    second = cluster.add_node(num_cpus=NODE_CPUS)
    trains_with(run, process, 2)
    cluster.remove_node(second, allow_graceful=False)
    trains_with(run, process, 1)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, LAST_WAIT_S)
    assert code == 130, err
    planned = [event["event"] for event in events(run, "start", "restore", "failure", "resize", "stop")]
    assert planned == ["start", "stop"], "no group was started again"
    assert sizes(run) == [1, 2, 1]
    assert_same_as_one_worker(open_location(str(run)), tmp_path / "alone", steps=events(run, "stop")[0]["step"])


@pytest.mark.slow
def test_added_preempted_and_killed_nodes_do_not_change_the_result(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=NODE_CPUS)
    run = tmp_path / "elastic"
    process = start(tmp_path, "elastic", 1, ray_address=cluster.address, **SETTINGS)
    trains_with(run, process, 1)
    second = cluster.add_node(num_cpus=NODE_CPUS)
    trains_with(run, process, 2)

    take_away(cluster, second, notice_s=10)
    trains_with(run, process, 1)
    assert 5 < events(run, "notice")[0]["deadline_s"] <= 10

    third = cluster.add_node(num_cpus=NODE_CPUS)
    trains_with(run, process, 2)
    cluster.remove_node(third, allow_graceful=False)  # without a notice
    trains_with(run, process, 1)
    code, _, err = finish(process, LAST_WAIT_S)
    assert code == 0, err
    assert not events(run, "failure")
    assert len(starts(run)) == 1, "one group, in which workers came and went"
    _report(run)
    assert_same_as_one_worker(open_location(str(run)), tmp_path / "alone")


@pytest.mark.slow
def test_two_notices_then_two_nodes_at_once_then_that_of_rank_0(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "elastic"
    nodes = [cluster.add_node(num_cpus=NODE_CPUS) for _ in range(3)]
    more = {"resources.max-workers": 3, "train.epochs": 110}
    process = start(tmp_path, "elastic", 1, ray_address=cluster.address, **SETTINGS | more)

    trains_with(run, process, 3)
    with ThreadPoolExecutor() as clouds:  # the second notice comes before the run has stopped for the first
        first = clouds.submit(take_away, cluster, nodes[0], 12)
        sleep(4)
        clouds.submit(take_away, cluster, nodes[1], 12).result()
        first.result()
    trains_with(run, process, 1)
    nodes += [cluster.add_node(num_cpus=NODE_CPUS) for _ in range(2)]
    trains_with(run, process, 3)
    for node in nodes[3:]:
        cluster.remove_node(node, allow_graceful=False)
    trains_with(run, process, 1)
    cluster.add_node(num_cpus=NODE_CPUS)
    take_away(cluster, nodes[2], 12)
    code, _, err = finish(process, LAST_WAIT_S)
    assert code == 0, err
    _report(run)
    assert_same_as_one_worker(open_location(str(run)), tmp_path / "alone")


@pytest.mark.slow
def test_rank_0_runs_on_the_on_demand_node(cluster: Cluster, tmp_path: Path) -> None:
    import ray
    import ray.train.torch
    from ray.train.v2.api.config import RunConfig, ScalingConfig

    from simclr_ray.orchestrate.cluster import rank_0_selector
    from simclr_ray.planning.shares import Share

    def note_node(_: dict) -> None:
        rank = ray.train.get_context().get_world_rank()
        (tmp_path / str(rank)).write_text(ray.get_runtime_context().get_node_id())

    share = Share(min_workers=1, max_workers=3, cpus=1.5, gpus=0.0)
    for _ in range(2):
        cluster.add_node(num_cpus=NODE_CPUS, labels={"ray.io/market-type": "spot"})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert rank_0_selector(share) is None
        staying = cluster.add_node(num_cpus=NODE_CPUS, labels={"ray.io/market-type": "on-demand"})
        cluster.wait_for_nodes()
        ray.train.torch.TorchTrainer(
            note_node,
            train_loop_config={},
            scaling_config=ScalingConfig(
                num_workers=(1, 3), resources_per_worker={"CPU": 1.5}, label_selector=rank_0_selector(share)
            ),
            run_config=RunConfig(name="where", storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    assert (tmp_path / "0").read_text() == staying.node_id
    assert (tmp_path / "2").exists()


def take_away(cluster: Cluster, node: Any, notice_s: float) -> None:
    """Preempts a spot node as a cloud does: a notice on its metadata server, and at the deadline the node is gone.

    The real watcher polls the notice and drains the node.
    """
    with fake_metadata() as cloud:
        where = ["--metadata", cloud.base, "--address", cluster.address, "--node-id", node.node_id]
        watch = [sys.executable, "-m", "simclr_ray.orchestrate.preemption", "--cloud", "aws", "--poll-s", "0.5"]
        line = [*watch, *where]
        watcher = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        assert watcher.stderr is not None
        assert "watching aws" in watcher.stderr.readline()
        deadline = time() + notice_s
        at = datetime.fromtimestamp(deadline, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        cloud.instance_action = {"action": "terminate", "time": at}
        sleep(notice_s)
        cluster.remove_node(node, allow_graceful=False)
        watcher.kill()
        watcher.wait()


def _report(run: Path) -> None:
    from simclr_ray.report.goodput import account, table

    print(table(account(events(run), read_rows(open_location(str(run)) / "metrics.jsonl"))))
