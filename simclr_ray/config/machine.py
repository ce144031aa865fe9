"""The settings that must not change the result: resources, saving, elasticity and logging."""

from __future__ import annotations

from dataclasses import dataclass

from simclr_ray.config.checks import require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """Workers, their share of the cluster, and the decoded cache."""

    min_workers: int = 1
    max_workers: int | None = None
    """None: as many as the cluster has GPUs at the start, one on a cluster without GPUs."""
    gpus_per_worker: float | None = None
    """None: 1 if the cluster has GPUs, else 0. A fraction: trials of a sweep share a GPU, each kept to its part of the
    memory."""
    cpus_per_worker: float = 1.0
    """CPUs of a training worker, besides those of its data workers."""
    data_cpus: float | None = None
    """CPUs that decode and augment for one training worker; None: an equal share of what the cluster has left, and for
    training on a CPU an eighth of the worker's part of the cluster, at least 1."""
    threads: int | None = None
    """Torch's threads in a training worker; None: on a GPU cpus_per_worker, on a CPU its part of the cluster's CPUs."""
    compile: bool | None = None
    """torch.compile the model; None: on a GPU only."""
    cache_gib: float = 2.0
    """Datasets of up to so many GiB of pixels are decoded once into a memory-mapped file on each node; 0: never."""
    cache_dir: str | None = None
    """Folder of that file; None: the system's temporary folder."""

    def compiles(self, *, on_gpu: bool) -> bool:
        """`compile`, with its default resolved."""
        return on_gpu if self.compile is None else self.compile

    def __post_init__(self) -> None:
        require_at_least(1, "resources", self, "min_workers", "threads")
        require_at_least(self.min_workers, "resources", self, "max_workers")
        require_at_least(0, "resources", self, "gpus_per_worker", "cache_gib")
        require_positive("resources", self, "cpus_per_worker", "data_cpus")


@dataclass(frozen=True, kw_only=True)
class SavingConfig:
    """When checkpoints are written and which are kept."""

    every_s: float = 300.0
    every_steps: int | None = None
    """Also save at multiples of so many steps."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_every_epochs: int | None = None
    """Also keep the first checkpoint of every so many epochs."""
    patience_s: float = 3600.0
    """A failing store delays saves; the run ends when none has succeeded for so long."""
    stop_after_epochs: float | None = None
    """Save, check and stop there; the same command without it trains to the end."""

    def __post_init__(self) -> None:
        require_at_least(1, "saving", self, "every_steps", "keep_last", "keep_every_epochs")
        require_at_least(0, "saving", self, "patience_s")
        require_positive("saving", self, "every_s", "stop_after_epochs")


@dataclass(frozen=True, kw_only=True)
class ElasticityConfig:
    """When a group of workers grows, and when it stops before a preemption."""

    resize_every_s: float = 300.0
    """A group on GPUs trains for at least so long before it stops to grow beyond what the run had before. On CPUs
    others join without a stop."""
    settle_s: float = 3.0
    """Time between capacity for more workers and such a stop: nodes that come together are used together."""
    stop_margin_s: float | None = 3.0
    """The group saves and stops so long before a preemption's deadline; None: it goes on training, saving every
    second. Where the others can go on without the workers to be taken, these leave then."""
    wait_s: float = 0.0
    """How long those that survive the loss of a worker wait for another in its place before they go on without it."""
    start_wait_s: float = 900.0
    """How long a run waits for the machines that it needs to start, in a cluster that it has joined: they may boot."""

    def __post_init__(self) -> None:
        require_at_least(0, "elasticity", self, "resize_every_s", "settle_s", "stop_margin_s", "wait_s", "start_wait_s")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Which metrics and ids are logged, and how often."""

    every_steps: int = 10
    """Steps between two rows of metrics.jsonl."""
    ledger: bool = False
    """Write the sample ids of every step to ledger.jsonl, for debugging."""
    wandb: str | None = None
    """Project at Weights & Biases in which the rows of metrics.jsonl are repeated."""
    mlflow: str | None = None
    """Experiment at MLflow in which the rows of metrics.jsonl are repeated."""

    def __post_init__(self) -> None:
        require_at_least(1, "logging", self, "every_steps")
