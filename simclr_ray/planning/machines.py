"""GPU kinds and instance types of the clouds, from data sheets, with a typical spot price of each.

Prices move by the hour and by region: they are assumptions with a date, there to be overridden.
"""

from __future__ import annotations

from dataclasses import dataclass

from simclr_ray.config import BadInput

PRICES_FROM = "typical of US regions in 2025"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind, by its data sheet."""

    name: str
    memory_gb: float
    bandwidth_tb_s: float
    bf16_tflops: float
    """Dense, with float32 accumulation."""
    link_gb_s: float
    """What an all-reduce within a node reaches, about: NVLink, or PCIe."""


H200 = Gpu(name="H200", memory_gb=141, bandwidth_tb_s=4.8, bf16_tflops=989, link_gb_s=200)
H100 = Gpu(name="H100", memory_gb=80, bandwidth_tb_s=3.35, bf16_tflops=989, link_gb_s=200)
H100_NVL = Gpu(name="H100 NVL", memory_gb=94, bandwidth_tb_s=3.9, bf16_tflops=835, link_gb_s=12)
A100_80 = Gpu(name="A100 80GB", memory_gb=80, bandwidth_tb_s=2.0, bf16_tflops=312, link_gb_s=150)
A100_40 = Gpu(name="A100 40GB", memory_gb=40, bandwidth_tb_s=1.555, bf16_tflops=312, link_gb_s=150)
L40S = Gpu(name="L40S", memory_gb=48, bandwidth_tb_s=0.864, bf16_tflops=362, link_gb_s=12)
A10 = Gpu(name="A10", memory_gb=24, bandwidth_tb_s=0.6, bf16_tflops=125, link_gb_s=12)
A10G = Gpu(name="A10G", memory_gb=24, bandwidth_tb_s=0.6, bf16_tflops=70, link_gb_s=12)
L4 = Gpu(name="L4", memory_gb=24, bandwidth_tb_s=0.3, bf16_tflops=121, link_gb_s=12)
KINDS = (H200, H100_NVL, H100, A100_80, A100_40, L40S, L4, A10, A10G)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One type of machine."""

    name: str
    vcpus: int
    memory_gib: float
    network_gbit_s: float
    """Sustained, where the cloud says "up to"; infinite on this machine, a cluster of one node."""
    usd_per_hour: float
    gpus: int = 0
    gpu: Gpu | None = None
    """None: it has none, or one of an unknown kind."""
    smt: bool = True
    """Two vCPUs are one core."""


def _row(
    name: str,
    vcpus: int,
    memory_gib: float,
    network_gbit_s: float,
    usd_per_hour: float,
    gpus: int = 0,
    gpu: Gpu | None = None,
    *,
    smt: bool = True,
) -> Instance:
    return Instance(
        name=name,
        vcpus=vcpus,
        memory_gib=memory_gib,
        network_gbit_s=network_gbit_s,
        usd_per_hour=usd_per_hour,
        gpus=gpus,
        gpu=gpu,
        smt=smt,
    )


# Name, vCPUs, GiB, Gbit/s, spot USD an hour, GPUs.
AWS = (
    _row("g5.xlarge", 4, 16, 2.5, 0.45, 1, A10G),
    _row("g5.2xlarge", 8, 32, 5, 0.55, 1, A10G),
    _row("g5.4xlarge", 16, 64, 10, 0.75, 1, A10G),
    _row("g5.12xlarge", 48, 192, 40, 2.4, 4, A10G),
    _row("g6.xlarge", 4, 16, 2.5, 0.35, 1, L4),
    _row("g6.2xlarge", 8, 32, 5, 0.42, 1, L4),
    _row("g6.12xlarge", 48, 192, 40, 1.9, 4, L4),
    _row("g6e.xlarge", 4, 32, 2.5, 0.85, 1, L40S),
    _row("g6e.2xlarge", 8, 64, 5, 1.0, 1, L40S),
    _row("g6e.4xlarge", 16, 128, 20, 1.35, 1, L40S),
    _row("g6e.8xlarge", 32, 256, 25, 2.0, 1, L40S),
    _row("g6e.12xlarge", 48, 384, 100, 4.7, 4, L40S),
    _row("p4d.24xlarge", 96, 1152, 400, 10.0, 8, A100_40),
    _row("p4de.24xlarge", 96, 1152, 400, 13.0, 8, A100_80),
    _row("p5.4xlarge", 16, 256, 100, 3.0, 1, H100),
    _row("p5.48xlarge", 192, 2048, 3200, 23.0, 8, H100),
    _row("p5en.48xlarge", 192, 2048, 3200, 28.0, 8, H200),
    _row("c6a.8xlarge", 32, 64, 12.5, 0.5),
    _row("c7i.8xlarge", 32, 64, 12.5, 0.6),
    _row("c7a.4xlarge", 16, 32, 6.25, 0.33, smt=False),
    _row("c7a.8xlarge", 32, 64, 12.5, 0.65, smt=False),
    _row("c7a.16xlarge", 64, 128, 25, 1.3, smt=False),
    _row("m7a.8xlarge", 32, 128, 12.5, 0.75, smt=False),
)
GCP = (
    _row("g2-standard-4", 4, 16, 10, 0.3, 1, L4),
    _row("g2-standard-16", 16, 64, 32, 0.5, 1, L4),
    _row("a2-highgpu-1g", 12, 85, 24, 1.4, 1, A100_40),
    _row("a2-highgpu-8g", 96, 680, 100, 11.0, 8, A100_40),
    _row("a2-ultragpu-1g", 12, 170, 24, 2.0, 1, A100_80),
    _row("a3-highgpu-8g", 208, 1872, 1000, 20.0, 8, H100),
    _row("a3-ultragpu-8g", 224, 2952, 3600, 30.0, 8, H200),
    _row("n2-highcpu-32", 32, 32, 32, 0.35),
    _row("c3d-highcpu-30", 30, 59, 20, 0.35),
)
AZURE = (
    _row("Standard_NV36ads_A10_v5", 36, 440, 80, 0.9, 1, A10),
    _row("Standard_NC24ads_A100_v4", 24, 220, 20, 1.2, 1, A100_80),
    _row("Standard_NC40ads_H100_v5", 40, 320, 40, 2.5, 1, H100_NVL),
    _row("Standard_ND96isr_H100_v5", 96, 1900, 3200, 35.0, 8, H100),
    _row("Standard_F32s_v2", 32, 64, 16, 0.45),
    _row("Standard_D32as_v5", 32, 128, 16, 0.45),
)
LOCAL = "local"
INSTANCES = {row.name: row for row in (*AWS, *GCP, *AZURE)}


def instance(name: str) -> Instance:
    """The type of that name. Raises BadInput that lists the types there are."""
    if name not in INSTANCES:
        raise BadInput(f"no instance type is called {name!r}: take one of {LOCAL}, {', '.join(INSTANCES)}")
    return INSTANCES[name]


def kind_of(device_name: str) -> Gpu | None:
    """The kind of a device by the name that its driver gives, such as "NVIDIA H200"."""
    words = device_name.replace("-", " ").split()
    return next((kind for kind in KINDS if all(word in words for word in kind.name.split())), None)
