"""A job, machines and figures of round numbers, so that a plan for them can be calculated by hand."""

from __future__ import annotations

from dataclasses import fields

from simclr_ray.planning.figures import Figure, Figures
from simclr_ray.planning.job import Fleet, Job
from simclr_ray.planning.machines import H200, Instance

GPU_NODE = Instance(name="g", vcpus=10, memory_gib=64, network_gbit_s=80, usd_per_hour=3.0, gpus=1, gpu=H200)
CPU_NODE = Instance(name="c", vcpus=10, memory_gib=64, network_gbit_s=80, usd_per_hour=1.0)

JOB = Job(
    global_batch=1000,
    passes=1,
    busiest_rows=500,
    steps=600,
    size=100,
    view_pixels=2 * 100**2,
    threads=2,
    image_kb=100.0,
    cached=True,
    unprepared_bytes=0.0,
    trained_parameters=10_000_000,
    batchnorms=50,
    state_bytes=80_000_000,
    save_every_s=100.0,
    save_every_steps=None,
    settle_s=20.0,
    evaluations=0,
    evaluated_images=6000,
)
FLEET = Fleet(
    workers=2,
    nodes=2,
    machine=GPU_NODE,
    cpu_nodes=0,
    cpu_machine=None,
    cpus_per_worker=2.0,
    data_cpus=8.0,
    elastic=True,
)
FIGURES = Figures(
    **dict.fromkeys((field.name for field in fields(Figures)), Figure(value=0.0, source="none"))
).replaced(
    "for the test",
    step_images_per_s=1000,
    core_images_per_s=500,
    cores_per_vcpu=0.5,
    cpu_node_cores_per_vcpu=1,
    stream_efficiency=0.8,
    stream_mb_per_s=1e9,
    network_efficiency=0.5,
    gradient_gbit_per_s=1e9,
    store_gbit_per_s=1e9,
    store_requests_per_s=1e9,
    prepare_mb_per_s=100,
    link_gb_per_s=1,
    snapshot_gb_per_s=1e9,
    usd_per_hour=3,
    cpu_node_usd_per_hour=1,
    head_usd_per_hour=0.5,
)
