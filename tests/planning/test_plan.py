"""The planner against sums done by hand, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plans import CPU_NODE, FIGURES, FLEET, GPU_NODE, JOB
from simclr_ray.config import BadInput
from simclr_ray.planning.estimate import FEED, GRADIENTS, STEP, STORE, Plan, StepTime, plan, step_time_of
from simclr_ray.planning.job import Fleet, Job


def times(job: Job = JOB, fleet: Fleet = FLEET, **values: float) -> StepTime:
    return step_time_of(job, fleet, FIGURES.given(**values))


def planned(job: Job = JOB, fleet: Fleet = FLEET, **values: float) -> Plan:
    return plan(job, fleet, FIGURES.given(**values))


# What a step takes


def test_a_step_takes_as_long_as_the_worker_with_most_images() -> None:
    assert times().step == 500 / 1000
    assert times(replace(JOB, busiest_rows=600)).step == 600 / 1000
    # A forward is a third of a step, and the first pass is forwarded once.
    assert times(replace(JOB, passes=2)).step == pytest.approx(500 / 1000 * (1 + 1 / 6))
    assert times(replace(JOB, passes=4)).step == pytest.approx(500 / 1000 * 1.25)
    local = replace(JOB, passes=4, view_pixels=4 * 100**2)  # half of it is local views, which are all forwarded twice
    assert times(local).step == pytest.approx(500 / 1000 * (1 + (1 - 1 / 8) / 3))


def test_the_feed_is_what_the_data_cpus_do_through_ray() -> None:
    assert times().feed == pytest.approx(1000 / (2 * 8 * 0.5 * 500 * 0.8))
    # 2 x 3 x 100 x 100 bytes of views: 60 kB an image, of which 30 MB/s a worker let 500 through.
    assert times(stream_mb_per_s=30).feed == pytest.approx(1000 / (2 * 500))


def test_nodes_that_only_augment_feed_through_the_network() -> None:
    helped = replace(FLEET, cpu_nodes=2, cpu_machine=CPU_NODE, data_cpus=18.0)
    near, far = 16 * 0.5 * 500 * 0.8, 20 * 1 * 500 * 0.8
    assert times(fleet=helped).feed == pytest.approx(1000 / (near + far))
    slow = replace(helped, machine=replace(GPU_NODE, network_gbit_s=0.48))  # x 0.5: 30 MB/s a node, 500 images
    assert times(fleet=slow).feed == pytest.approx(1000 / (near + 2 * 500))


def test_gradients_go_round_a_ring_and_batchnorm_waits_twice_a_layer() -> None:
    # 40 MB, of which 2 x 1/2 cross the network of 40 Gbit/s: 8 ms.
    assert times().gradients == pytest.approx(40e6 / 5e9)
    assert times(sync_ms=0.1).gradients == pytest.approx(40e6 / 5e9 + 50 * 2 * 1e-4)
    assert times(replace(JOB, passes=2), sync_ms=0.1).gradients == pytest.approx(40e6 / 5e9 + 50 * 5 * 1e-4)
    assert times(gradient_gbit_per_s=8).gradients == pytest.approx(40e6 / 1e9)
    together = replace(FLEET, workers=4, nodes=1)  # 2 x 3/4 of 40 MB at 1 GB/s, nothing between nodes
    assert times(fleet=together).gradients == pytest.approx(60e6 / 1e9)
    assert times(fleet=replace(FLEET, workers=1, nodes=1)).gradients == 0


def test_the_store_is_read_by_all_nodes_unless_they_keep_the_images() -> None:
    assert times().store == 0
    fresh = replace(JOB, cached=False)
    assert times(fresh).store == pytest.approx(1000 * 100e3 / (2 * 5e9))
    assert times(fresh, store_gbit_per_s=8).store == pytest.approx(1000 * 100e3 / (2 * 1e9))
    helped = replace(FLEET, cpu_nodes=2, cpu_machine=CPU_NODE)
    assert times(fresh, helped).store == pytest.approx(1000 * 100e3 / (4 * 5e9))
    assert times(fresh, helped, store_requests_per_s=500).store == pytest.approx(1000 / 32 / 500)


def test_training_and_feed_share_the_cores_of_a_cpu_machine() -> None:
    alone = replace(FLEET, workers=1, nodes=1, machine=CPU_NODE, data_cpus=1.0)
    job = replace(JOB, busiest_rows=1000)
    # Two threads make 1,000 images/s: 2 ms of a core each; the feed takes 2.5 ms; ten vCPUs are five cores.
    assert times(job, alone).cores == pytest.approx(1000 * (0.002 + 0.0025) / 5)
    assert times().cores == 0
    crowded = replace(alone, machine=replace(CPU_NODE, vcpus=3), cpus_per_worker=1.0, data_cpus=2.0)
    found = times(job, crowded, cores_per_vcpu=1.0)
    assert (found.step, found.feed, found.cores) == (1, pytest.approx(1.25), pytest.approx(1.5))
    assert found.bottleneck == FEED
    assert times(job, crowded, cores_per_vcpu=1.0, core_images_per_s=1000).bottleneck == STEP


def test_a_worker_has_a_whole_data_worker_at_least() -> None:
    """Ray counts it as a part of a CPU, and keeps it from no more."""
    assert times(fleet=replace(FLEET, data_cpus=0.5)).feed == times(fleet=replace(FLEET, data_cpus=1.0)).feed


def test_the_bottleneck_moves_from_feed_to_step_as_cores_are_added() -> None:
    found = [times(fleet=replace(FLEET, data_cpus=cpus)).bottleneck for cpus in (1.0, 2.0, 4.0, 6.0, 8.0)]
    assert found == [FEED, FEED, FEED, STEP, STEP]


def test_the_other_bottlenecks_are_named() -> None:
    assert times(gradient_gbit_per_s=0.4).bottleneck == GRADIENTS
    assert times(replace(JOB, cached=False), store_gbit_per_s=0.4).bottleneck == STORE
    assert times(gradient_gbit_per_s=1).bottleneck == STEP


def test_an_unknown_device_must_be_measured() -> None:
    with pytest.raises(BadInput, match="--measure"):
        times(step_images_per_s=0.0)


# What a run takes


def test_an_undisturbed_run_is_its_steps_evaluations_saves_and_start() -> None:
    job = replace(JOB, evaluations=3, save_every_s=10.0)
    found = planned(job, launch_s=20, node_start_s=100, ready_s=5, compile_s=15, snapshot_gb_per_s=0.1)
    step = 0.5 + 40e6 / 5e9
    assert found.images_per_s == pytest.approx(1000 / step)
    assert (found.start_s, found.first_step_s) == (120, 20)
    assert found.training_s == pytest.approx(600 * step)
    assert found.evaluation_s == pytest.approx(3 * 6000 / 2 * (1 / (500 * 2) + 1 / 6000))
    assert found.stalls_s == pytest.approx(600 * step / 10 * 0.8)
    assert found.hours == pytest.approx((120 + 20 + found.training_s + found.evaluation_s + found.stalls_s) / 3600)
    assert found.dollars == pytest.approx(found.hours * (2 * 3 + 0.5))
    assert (found.interruptions, found.lost_s, found.slow_s) == (0, 0, 0)


def test_preparation_is_told_beside_the_run() -> None:
    found = planned(replace(JOB, unprepared_bytes=36e9))
    assert (found.prepare_s, found.hours) == (360, planned().hours)


def test_saves_may_come_by_the_step() -> None:
    often = replace(JOB, save_every_steps=10)
    assert planned(often, snapshot_gb_per_s=0.1).stalls_s == pytest.approx(60 * 0.8)


def test_without_interruptions_goodput_is_one_but_for_the_start() -> None:
    assert planned().goodput == pytest.approx(1)
    short, long = (planned(replace(JOB, steps=steps), ready_s=10) for steps in (60, 60_000))
    assert short.goodput == pytest.approx(short.training_s / (10 + short.training_s))
    assert long.goodput > 0.999


def test_an_interruption_costs_a_restart_lost_work_and_a_smaller_group() -> None:
    costs = {"notice_s": 20, "kill_s": 40, "grow_s": 10, "compile_s": 5, "unannounced": 0.25, "node_start_s": 380}
    found = planned(interruptions_per_node_hour=0.9, **costs)
    lost = 0.75 * 20 + 0.25 * (40 + 100 / 2) + 10 + 2 * 5
    slow = (380 + 20) / 2  # one node of two is away for so long
    count = 2 * 0.9 / 3600 * (found.training_s + found.stalls_s) / (1 - 2 * 0.9 / 3600 * (lost + slow))
    assert found.interruptions == pytest.approx(count)
    assert (found.lost_s, found.slow_s) == (pytest.approx(count * lost), pytest.approx(count * slow))
    # As many as the rate says of all the time that the workers are there after their first step.
    assert found.interruptions == pytest.approx(2 * 0.9 / 3600 * (found.records_s - found.first_step_s))
    assert found.goodput == pytest.approx((found.training_s + found.slow_s) / found.records_s)


def test_a_group_that_cannot_shrink_waits_for_the_node() -> None:
    fixed = planned(fleet=replace(FLEET, elastic=False), interruptions_per_node_hour=1, notice_s=20, node_start_s=300)
    assert fixed.lost_s == pytest.approx(fixed.interruptions * 320)
    assert fixed.slow_s == 0
    elastic = planned(interruptions_per_node_hour=1, notice_s=20, node_start_s=300)
    assert elastic.hours < fixed.hours
    assert elastic.goodput > fixed.goodput


def test_goodput_falls_with_interruptions_until_nothing_is_left() -> None:
    rates = [planned(interruptions_per_node_hour=rate, notice_s=60).goodput for rate in (0.0, 0.1, 1, 5)]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(BadInput, match="leaves no time to train"):
        planned(interruptions_per_node_hour=60, notice_s=60)
