"""Every knob of a run, validated on construction, and what counts as its science.

The group `machine` and the addresses in `ADDRESSES` must not change the result: they may differ between two
starts of the same run. Every other value is science; `science_changes` names those that differ.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from simclr_ray.checks import BadInput as BadInput
from simclr_ray.checks import checked, require, require_at_least

FORMAT = 2
"""Of a run folder. It is raised where runs of the version before cannot be resumed: 2 has another order of samples."""
ADDRESSES = frozenset({"data.train", "evaluate.train", "evaluate.test"})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures: where they are, and what the run expects of them."""

    train: str = "synthetic:4096"
    """A prepared dataset, or anything that experiments/prepare.py takes: it is then prepared once into the storage."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means of [0, 1] pictures, subtracted on the device (ImageNet's unless told)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations, divided by on the device."""
    max_bad_fraction: float = 0.001
    """The run ends when more pictures than max(10, this fraction of the rows) cannot be decoded."""

    def __post_init__(self) -> None:
        require(bool(self.train), "data.train is empty: give a folder of pictures or a prepared dataset")
        require(min(self.std) > 0, f"data.std must be positive, not {self.std}")
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The distribution of views (SimCLR, appendix A). The defaults are those of ImageNet."""

    size: int = 224
    """Side of a view in pixels."""
    crop_min: float = 0.08
    """Smallest part of the picture's area that a crop keeps; the largest is all of it."""
    flip_p: float = 0.5
    strength: float = 1.0
    """s: brightness, contrast and saturation up to 0.8 s, hue up to 0.2 s."""
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0

    def __post_init__(self) -> None:
        require(8 <= self.size <= 1024, f"augment.size must lie in 8..1024 pixels, not {self.size}")
        require(0 < self.crop_min <= 1, f"augment.crop_min must lie in (0, 1], not {self.crop_min}")
        require(0 <= self.strength <= 2.5, f"augment.strength must lie in [0, 2.5], not {self.strength}")
        for name in ("flip_p", "jitter_p", "grayscale_p", "blur_p"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} is a probability, not {getattr(self, name)}")
        require(
            0 < self.blur_sigma_min <= self.blur_sigma_max, "augment.blur_sigma_min must lie in (0, blur_sigma_max]"
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder, which is kept, and the projection head, which is not."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    width: float = 1.0
    """Multiplies every channel count: 1, 2, 4, or a fraction."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 stride 2 and max pool; cifar: 3x3 stride 1 and no pool, for pictures of 32 px and below."""
    head: Literal["none", "linear", "mlp"] = "mlp"
    head_layers: Literal[2, 3] = 2
    """Layers of the mlp head."""
    head_hidden: int | None = None
    """Hidden width of the mlp head; None: that of the feature."""
    head_dim: int = 128
    """Dimension of the projection z (not used by the head `none`)."""
    head_batchnorm: bool = False
    """BatchNorm after every layer of the mlp head, whose dense layers then have no bias."""

    def __post_init__(self) -> None:
        planes = 64 * self.width
        require(planes >= 1 and planes == int(planes), f"model.width must make 64 x width whole, not {self.width}")
        require_at_least(1, "model", self, "head_dim", "head_hidden")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """NT-Xent's temperature, the optimizer and its schedule."""

    temperature: float = 0.1
    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    lr_per_256: float = 0.3
    """Learning rate at a global batch of 256; see lr_scaling."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """linear: lr_per_256 x B / 256; sqrt: lr_per_256 x sqrt(B / 256) (the paper's 0.075 sqrt(B) is 1.2 here)."""
    momentum: float = 0.9
    """Momentum of lars and sgd."""
    weight_decay: float = 1e-6
    trust_coefficient: float = 0.001
    """LARS's eta."""
    warmup_epochs: float = 10.0

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"optim.temperature must be positive, not {self.temperature}")
        require(self.lr_per_256 > 0, f"optim.lr_per_256 must be positive, not {self.lr_per_256}")
        require(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), not {self.momentum}")
        require(self.trust_coefficient > 0, "optim.trust_coefficient must be positive")
        require_at_least(0, "optim", self, "weight_decay", "warmup_epochs")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, over which batch, with which arithmetic."""

    epochs: int = 100
    global_batch: int = 4096
    """B: pictures in a step, over all workers; a multiple of the dataset's slice_rows."""
    pass_size: int | None = None
    """Pictures in one forward over all workers, a divisor of B; BatchNorm is over both their views. None: B."""
    precision: Literal["auto", "float64", "float32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU and on a CPU with instructions for it (AVX512-BF16, AMX), float32 on others;
    resolved at the first start and kept."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, "train", self, "epochs", "pass_size")
        require_at_least(2, "train", self, "global_batch")
        require(0 <= self.seed < 2**63, f"train.seed must lie in 0..2^63 - 1, not {self.seed}")
        if self.pass_size is not None:
            require(
                self.global_batch % self.pass_size == 0,
                f"train.pass_size {self.pass_size} does not divide train.global_batch {self.global_batch}",
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The check during training: off unless every_epochs is set."""

    every_epochs: int = 0
    """Epochs between two checks, and one at the end; 0: none."""
    method: Literal["knn", "linear", "rankme"] = "knn"
    """What is measured: accuracy of kNN, of a linear classifier as well, or rankme alone, which needs no labels."""
    train: str | None = None
    """Labelled pictures for the bank; None: data.train."""
    test: str | None = None
    """Labelled pictures to classify: a dataset, or anything that prepare takes. None: rows held out of the bank's."""
    bank_rows: int = 50_000
    """The first so many rows of the (shuffled) training set are the bank."""
    test_rows: int = 10_000
    """The first so many of the test set, or the last of the training set (half of it at most) where there is none."""
    neighbours: int = 200
    temperature: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(0, "evaluate", self, "every_epochs")
        require_at_least(1, "evaluate", self, "bank_rows", "test_rows", "neighbours")
        require(self.temperature > 0, "evaluate.temperature must be positive")


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """What the run is given to run on. None of it may change the result."""

    min_workers: int = 1
    max_workers: int | None = None
    """None: as many as the cluster has GPUs at the start, one on a cluster without."""
    gpus_per_worker: float | None = None
    """None: 1 if the cluster has GPUs, else 0."""
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
    """Where that file lies; None: the system's temporary folder."""
    save_every_s: float = 300.0
    save_every_steps: int | None = None
    """Also save at multiples of so many steps."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_every_epochs: int | None = None
    """Also keep the first checkpoint of every so many epochs."""
    save_patience_s: float = 3600.0
    """A store that fails delays saves; the run ends when none has succeeded for so long."""
    log_every_steps: int = 10
    ledger: bool = False
    """Write the sample ids of every step to ledger.jsonl, for debugging."""
    resize_every_s: float = 300.0
    """A group of workers trains for at least so long before it stops to grow."""
    settle_s: float = 22.0
    """Time between room for more workers and growing: Ray's own count follows the cluster every 20 s."""
    stop_margin_s: float | None = 3.0
    """The group saves and stops so long before a preemption's deadline; None: it trains on, saving every second."""
    stop_after_epochs: float | None = None
    """Save, check and leave the run there; the same command without it goes on to the end."""

    def __post_init__(self) -> None:
        require_at_least(1, "machine", self, "min_workers", "threads", "save_every_steps")
        require_at_least(1, "machine", self, "keep_last", "keep_every_epochs", "log_every_steps")
        require_at_least(0, "machine", self, "gpus_per_worker", "cache_gib", "save_patience_s", "resize_every_s")
        require_at_least(0, "machine", self, "settle_s", "stop_margin_s")
        require_at_least(self.min_workers, "machine", self, "max_workers")
        for name in ("cpus_per_worker", "data_cpus", "save_every_s", "stop_after_epochs"):
            value = getattr(self, name)
            require(value is None or value > 0, f"machine.{name} must be positive, not {value}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=2) + "\n"

    def flat(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return _flatten(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`, in any format: `machine` keys that are no more change nothing."""
        groups = {key: value for key, value in json.loads(text).items() if key != "format"}
        values, known = _flatten(groups), config_types()
        return cls().with_overrides({k: v for k, v in values.items() if k in known or not k.startswith("machine.")})

    def with_overrides(self, overrides: dict[str, Any]) -> Self:
        """A copy with values replaced by dotted key, such as {"optim.temperature": 0.2}; checked like any config."""
        groups: dict[str, dict[str, Any]] = {}
        for key, value in overrides.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = checked(key, config_types().get(key), value)
        replaced = {group: dataclasses.replace(getattr(self, group), **values) for group, values in groups.items()}
        return dataclasses.replace(self, **replaced)


def format_of(text: str) -> int:
    """The format of the run folder whose config.json holds `text`: the first did not write it."""
    return json.loads(text).get("format", 1)


def config_types() -> dict[str, Any]:
    """The declared type of every dotted key."""
    groups = typing.get_type_hints(Config)
    return {f"{g}.{name}": hint for g, cls in groups.items() for name, hint in typing.get_type_hints(cls).items()}


def science_changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose science value differs, with both values."""
    before, after = old.flat(), new.flat()
    return {
        key: (before[key], after[key])
        for key in before
        if not key.startswith("machine.") and key not in ADDRESSES and before[key] != after[key]
    }


def _flatten(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
