"""The figures that a plan rests on besides the recipe, each with its source: measured, assumed or given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf, log2

from simclr_ray.planning.cost import ModelCost, cpu_images_per_s, gpu_images_per_s
from simclr_ray.planning.job import Fleet, Job
from simclr_ray.planning.machines import H200, LOCAL, PRICES_FROM, Instance

SMT_CORES = 0.6
"""Cores of a vCPU that shares its core with another: the second adds 20 %."""
PHOTOGRAPH_KB, PHOTOGRAPH_PX = 110.0, 224
PHOTOGRAPH_S, DECODE_S = 1 / 923, 1 / 1773
TWO_CORES = "measured on two cores"
GIVEN = "given"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value and its source."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Units are in the names."""

    step_images_per_s: Figure
    """Of one worker's step, with its share of the batch, undisturbed."""
    core_images_per_s: Figure
    """Of one core that reads, decodes and renders both views."""
    cores_per_vcpu: Figure
    cpu_node_cores_per_vcpu: Figure
    stream_efficiency: Figure
    """Ray Data's rate over that of the bare loop."""
    stream_mb_per_s: Figure
    """The most that comes through Ray Data into one training worker."""
    network_efficiency: Figure
    gradient_gbit_per_s: Figure
    """The most that all-reduces between nodes use of the network."""
    store_gbit_per_s: Figure
    """The most that a node reads from an object store."""
    store_requests_per_s: Figure
    """The most that a store answers in all; a slice is one request."""
    prepare_mb_per_s: Figure
    """At which preparation writes images: one process does."""
    link_gb_per_s: Figure
    """Of an all-reduce within a node."""
    sync_ms: Figure
    """Of one small all-reduce, as each BatchNorm layer does twice."""
    snapshot_gb_per_s: Figure
    """At which a save copies the state before training goes on."""
    launch_s: Figure
    """From the command to the first worker."""
    ready_s: Figure
    """From the first worker to the first step, without compiling."""
    compile_s: Figure
    node_start_s: Figure
    """From asking for a node to its workers."""
    notice_s: Figure
    """From a stop before a node is taken away to the next step."""
    kill_s: Figure
    """From an unannounced loss to the next step."""
    grow_s: Figure
    """From a stop to grow to the next step."""
    unannounced: Figure
    """Part of the interruptions that come without notice."""
    interruptions_per_node_hour: Figure
    usd_per_hour: Figure
    """Of a node."""
    cpu_node_usd_per_hour: Figure
    head_usd_per_hour: Figure

    def rows(self) -> list[tuple[str, Figure]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def given(self, **values: float | None) -> Figures:
        """With the values that the user gave; None: not given."""
        return self.replaced(GIVEN, **{name: value for name, value in values.items() if value is not None})

    def replaced(self, source: str, **values: float) -> Figures:
        return replace(self, **{name: Figure(value=value, source=source) for name, value in values.items()})


def default_figures(job: Job, cost: ModelCost, fleet: Fleet) -> Figures:
    """The figures without a measurement on this machine."""
    machine, cpu_machine = fleet.machine, fleet.cpu_machine
    cores, cpu_cores = _cores_per_vcpu(machine), _cores_per_vcpu(cpu_machine or machine)
    local = machine.name == LOCAL
    price = Figure(value=machine.usd_per_hour, source=f"assumed: {PRICES_FROM}")
    nothing = Figure(value=0.0, source="this machine")
    cpu_price = (
        replace(price, value=cpu_machine.usd_per_hour) if cpu_machine else Figure(value=0.0, source="no such node")
    )
    return Figures(
        step_images_per_s=_step(job, cost, machine, cores),
        core_images_per_s=_core(job),
        cores_per_vcpu=cores,
        cpu_node_cores_per_vcpu=cpu_cores,
        stream_efficiency=Figure(value=0.84, source=TWO_CORES),
        stream_mb_per_s=Figure(value=2350, source="measured: 7,800 rows/s of 301 KB into a process, 16 cores"),
        network_efficiency=Figure(value=0.7, source="assumed, of what the cloud names"),
        gradient_gbit_per_s=Figure(value=100, source="assumed: NCCL over TCP; no plugin for EFA or InfiniBand"),
        store_gbit_per_s=Figure(value=25, source="assumed"),
        store_requests_per_s=Figure(value=5500, source="assumed: S3's limit for a prefix, until it divides it"),
        prepare_mb_per_s=Figure(value=264, source=TWO_CORES),
        link_gb_per_s=_link(machine),
        sync_ms=_sync(machine, fleet.nodes),
        snapshot_gb_per_s=Figure(value=2, source="assumed"),
        launch_s=Figure(value=13, source=TWO_CORES),
        ready_s=Figure(value=12, source=TWO_CORES),
        compile_s=Figure(value=55 if machine.gpus else 0, source="measured on one H200; a CPU does not compile"),
        node_start_s=nothing if local else Figure(value=300, source="assumed: request, boot, set-up"),
        notice_s=Figure(value=22, source=TWO_CORES),
        kill_s=Figure(value=22, source=TWO_CORES),
        grow_s=Figure(value=12, source=TWO_CORES),
        unannounced=Figure(value=0.1, source="assumed"),
        interruptions_per_node_hour=nothing if local else Figure(value=0.05, source="assumed"),
        usd_per_hour=nothing if local else price,
        cpu_node_usd_per_hour=cpu_price,
        head_usd_per_hour=nothing if local else Figure(value=0.2, source="assumed: 4 vCPUs on demand"),
    )


def _step(job: Job, cost: ModelCost, machine: Instance, cores: Figure) -> Figure:
    if machine.gpu:
        basis = "3,641/s measured on H200 with ResNet-50 at 224"
        source = (
            f"{basis}, by the model's cost" if machine.gpu is H200 else f"assumed: {basis}, by data sheet and model"
        )
        return Figure(value=gpu_images_per_s(cost, machine.gpu), source=source)
    if machine.gpus:
        return Figure(value=0.0, source="unknown kind of GPU: --measure, or --gpu-images-per-s")
    rate = cpu_images_per_s(cost, cores.value * job.threads)
    return Figure(value=rate, source="assumed: by arithmetic from 235/s measured, quickstart, one Zen 5 core")


def _core(job: Job) -> Figure:
    """Decoding goes with the image's bytes, rendering with the views' pixels."""
    decoding = 0.0 if job.cached else DECODE_S * job.image_kb / PHOTOGRAPH_KB
    rendering = (PHOTOGRAPH_S - DECODE_S) * job.view_pixels / (2 * PHOTOGRAPH_PX**2)
    basis = "923/s measured, one Zen 5 core, JPEG of 110 KB, views of 224 with blur"
    as_measured = job.view_pixels == 2 * PHOTOGRAPH_PX**2 and abs(job.image_kb - PHOTOGRAPH_KB) < 1 and not job.cached
    return Figure(value=1 / (decoding + rendering), source=basis if as_measured else f"assumed: by size from {basis}")


def _cores_per_vcpu(machine: Instance) -> Figure:
    if machine.name == LOCAL:
        return Figure(value=1.0, source="this machine: what is measured is measured on one CPU")
    if machine.smt:
        return Figure(value=SMT_CORES, source="assumed: two vCPUs are one core, as fast as Zen 5, the second adds 20 %")
    return Figure(value=1.0, source="a vCPU is a core, assumed as fast as Zen 5")


def _link(machine: Instance) -> Figure:
    if machine.gpu:
        return Figure(value=machine.gpu.link_gb_s, source=f"assumed: {machine.gpu.name}'s links")
    return Figure(value=1, source="assumed: gloo over loopback")


def _sync(machine: Instance, nodes: int) -> Figure:
    if nodes > 1:
        return Figure(value=0.15 * log2(nodes), source="assumed: 0.15 for each doubling of the nodes")
    return Figure(value=0.03 if machine.gpus else 0.2, source="assumed: within a node")


def network_gbit_per_s(machine: Instance) -> float:
    """Infinite for this machine, a cluster of one node."""
    return inf if machine.name == LOCAL else machine.network_gbit_s
