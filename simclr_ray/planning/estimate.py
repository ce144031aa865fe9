"""How long a run will take, what it will cost and its bottleneck: sums over the figures of figures.py.

A step is as slow as the slowest of what goes on side by side: training it and adding up its gradients, feeding it,
reading its images, and, where training itself runs on CPUs, the cores that all this shares. Interruptions are counted
to first order: each costs a restart, the work since the last save if it came unannounced, and the time that a smaller
group, or none, trains until the node is replaced. Not counted: gradients, views and images that meet on one network,
the loss of a node that only augments, storage and traffic in the price.
"""

from __future__ import annotations

from dataclasses import dataclass

from simclr_ray.config import BadInput
from simclr_ray.planning.figures import Figures, network_gbit_per_s
from simclr_ray.planning.job import SLICE_ROWS, Fleet, Job

STEP, FEED, GRADIENTS, STORE = "step", "feed", "gradients", "store"
FORWARD = 1 / 3
"""Part of a step that is its forward: what a pass that is forwarded twice costs more."""
EVALUATION_SPEEDUP = 6
"""Over training, in images: one view instead of two, and no backward."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one global step."""

    step: float
    gradients: float
    """Follows the step's backward."""
    feed: float
    store: float
    cores: float
    """What step and feed take together of all cores; 0 with GPUs."""
    feeds_cores_most: bool

    @property
    def seconds(self) -> float:
        return max(self.step + self.gradients, self.feed, self.store, self.cores)

    @property
    def bottleneck(self) -> str:
        if self.seconds == self.feed or (self.seconds == self.cores and self.feeds_cores_most):
            return FEED
        if self.seconds == self.store:
            return STORE
        return GRADIENTS if self.seconds == self.step + self.gradients and self.gradients > self.step else STEP


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to expect, in seconds unless named otherwise."""

    step_time: StepTime
    images_per_s: float
    start_s: float
    """Until the first worker is up: nodes, Ray."""
    first_step_s: float
    """From there until the first step is done."""
    training_s: float
    """By the whole group, undisturbed."""
    evaluation_s: float
    stalls_s: float
    """Held up by saves."""
    interruptions: float
    lost_s: float
    """Restarts and work done again, of all interruptions."""
    slow_s: float
    """What training by smaller groups adds."""
    dollars: float
    prepare_s: float
    """Before all that, once, at the least: neither hours nor dollars count it."""

    @property
    def records_s(self) -> float:
        """From the first worker to the end, as events.jsonl records it."""
        parts = (self.first_step_s, self.training_s, self.evaluation_s, self.stalls_s, self.lost_s, self.slow_s)
        return sum(parts)

    @property
    def hours(self) -> float:
        return (self.start_s + self.records_s) / 3600

    @property
    def goodput(self) -> float:
        """Training's part of `records_s`, as experiments/report.py --goodput counts it."""
        return (self.training_s + self.slow_s) / self.records_s


def plan(job: Job, fleet: Fleet, figures: Figures) -> Plan:
    """Raises BadInput where a figure is missing, or interruptions cost more than training gains between them."""
    step_time = step_time_of(job, fleet, figures)
    training = job.steps * step_time.seconds
    evaluation = job.evaluations * _evaluation_s(job, fleet, figures)
    save_every = min(job.save_every_s, step_time.seconds * (job.save_every_steps or job.steps))
    stalls = training / save_every * job.state_bytes / (1e9 * figures.snapshot_gb_per_s.value)
    useful = training + evaluation + stalls
    lost_each, slow_each = _interruption_s(job, fleet, figures, save_every)
    rate = fleet.nodes * figures.interruptions_per_node_hour.value / 3600
    left = 1 - rate * (lost_each + slow_each)
    if left <= 0:
        raise BadInput(
            f"an interruption every {1 / rate:,.0f} s that costs {lost_each + slow_each:,.0f} s leaves no time to "
            "train: take fewer nodes, or lower saving.every_s"
        )
    interruptions = rate * useful / left
    start = figures.node_start_s.value + figures.launch_s.value
    first = figures.ready_s.value + figures.compile_s.value
    hours = (start + first + useful / left) / 3600
    return Plan(
        step_time=step_time,
        images_per_s=job.global_batch / step_time.seconds,
        start_s=start,
        first_step_s=first,
        training_s=training,
        evaluation_s=evaluation,
        stalls_s=stalls,
        interruptions=interruptions,
        lost_s=interruptions * lost_each,
        slow_s=interruptions * slow_each,
        dollars=hours * usd_per_hour(fleet, figures),
        prepare_s=job.unprepared_bytes / (1e6 * figures.prepare_mb_per_s.value),
    )


def usd_per_hour(fleet: Fleet, figures: Figures) -> float:
    """Of all nodes and the head."""
    cpu_nodes = fleet.cpu_nodes * figures.cpu_node_usd_per_hour.value
    return fleet.nodes * figures.usd_per_hour.value + cpu_nodes + figures.head_usd_per_hour.value


def step_time_of(job: Job, fleet: Fleet, figures: Figures) -> StepTime:
    rate = figures.step_images_per_s.value
    if not rate:
        raise BadInput(f"the speed of {fleet.machine.name} is unknown: give --measure, or --gpu-images-per-s")
    forwards = 1 + FORWARD * _forwarded_twice(job)
    feed_core_s = 1 / (figures.core_images_per_s.value * figures.stream_efficiency.value)
    step_core_s = 0.0 if fleet.machine.gpus else job.threads * forwards / rate
    return StepTime(
        step=job.busiest_rows * forwards / rate,
        gradients=_gradients_s(job, fleet, figures),
        feed=job.global_batch / _feed_images_per_s(job, fleet, figures),
        store=0.0 if job.cached else _store_s(job, fleet, figures),
        cores=job.global_batch * (step_core_s + feed_core_s) / _cores(fleet, figures) if step_core_s else 0.0,
        feeds_cores_most=feed_core_s > step_core_s,
    )


def _forwarded_twice(job: Job) -> float:
    """Part of a batch: with several passes all of it, but for the first one's views of full size (train/step.py)."""
    return 0.0 if job.passes == 1 else 1 - 2 * job.size**2 / job.view_pixels / job.passes


def _cores(fleet: Fleet, figures: Figures) -> float:
    cpu_vcpus = fleet.vcpus - fleet.nodes * fleet.machine.vcpus
    ours = fleet.nodes * fleet.machine.vcpus * figures.cores_per_vcpu.value
    return ours + cpu_vcpus * figures.cpu_node_cores_per_vcpu.value


def _feed_images_per_s(job: Job, fleet: Fleet, figures: Figures) -> float:
    """Data workers next to training first, then those of the CPU nodes, whose views come through the network."""
    view_bytes = 3 * job.view_pixels
    wanted = fleet.workers * max(1, int(fleet.data_cpus))
    left = fleet.nodes * fleet.machine.vcpus - fleet.workers * fleet.cpus_per_worker
    near = min(wanted, left) if fleet.cpu_nodes else wanted
    per_core = figures.core_images_per_s.value * figures.stream_efficiency.value
    far_rate = (wanted - near) * figures.cpu_node_cores_per_vcpu.value * per_core
    network = fleet.nodes * network_gbit_per_s(fleet.machine) / 8 * 1e9 * figures.network_efficiency.value
    rate = near * figures.cores_per_vcpu.value * per_core + min(far_rate, network / view_bytes)
    return min(rate, fleet.workers * figures.stream_mb_per_s.value * 1e6 / view_bytes)


def _store_s(job: Job, fleet: Fleet, figures: Figures) -> float:
    """By the bytes, which more nodes read faster, or by the requests, of which a store has its own limit."""
    read = job.global_batch * job.image_kb * 1e3 / _store_bytes_per_s(fleet, figures)
    return max(read, job.global_batch / SLICE_ROWS / figures.store_requests_per_s.value)


def _store_bytes_per_s(fleet: Fleet, figures: Figures) -> float:
    def of(gbit_per_s: float) -> float:
        usable = gbit_per_s * figures.network_efficiency.value
        return min(usable, figures.store_gbit_per_s.value) / 8 * 1e9

    far = fleet.cpu_nodes * of(network_gbit_per_s(fleet.cpu_machine)) if fleet.cpu_machine else 0.0
    return fleet.nodes * of(network_gbit_per_s(fleet.machine)) + far


def _gradients_s(job: Job, fleet: Fleet, figures: Figures) -> float:
    """A ring within each node, one between the nodes, and two small all-reduces for each BatchNorm."""
    if fleet.workers == 1:
        return 0.0
    moved, here = 2 * 4 * job.trained_parameters, -(-fleet.workers // fleet.nodes)
    within = moved * (here - 1) / here / (1e9 * figures.link_gb_per_s.value)
    gbit_per_s = min(
        network_gbit_per_s(fleet.machine) * figures.network_efficiency.value, figures.gradient_gbit_per_s.value
    )
    between = moved * (fleet.nodes - 1) / fleet.nodes / (gbit_per_s / 8 * 1e9)
    syncs = job.batchnorms * (3 * job.passes - 1)  # a second forward for each pass but one
    return within + between + syncs * figures.sync_ms.value / 1e3


def _evaluation_s(job: Job, fleet: Fleet, figures: Figures) -> float:
    """Each worker decodes on its own threads, then extracts the features of its share."""
    decoding = 1 / (figures.core_images_per_s.value * job.threads)
    extracting = 1 / (EVALUATION_SPEEDUP * figures.step_images_per_s.value)
    return job.evaluated_images / fleet.workers * (decoding + extracting)


def _interruption_s(job: Job, fleet: Fleet, figures: Figures, save_every_s: float) -> tuple[float, float]:
    """What one costs in restarts and lost work, and what the smaller group costs in training time."""
    unannounced = figures.unannounced.value
    killed = unannounced * (figures.kill_s.value + save_every_s / 2)
    lost = (1 - unannounced) * figures.notice_s.value + killed + figures.compile_s.value
    if not fleet.elastic:
        return lost + figures.node_start_s.value, 0.0
    without = figures.node_start_s.value + job.settle_s
    return lost + figures.grow_s.value + figures.compile_s.value, without / fleet.nodes
