"""The settings of each method: a class for each, chosen by `method.name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from simclr_ray.config.checks import require, require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """NT-Xent over two views of every image in the global batch (Chen et al. 2020, equation 1)."""

    name: Literal["simclr"] = "simclr"
    """Chosen by --method NAME."""
    temperature: float = 0.1

    def __post_init__(self) -> None:
        require_positive("method", self, "temperature")


@dataclass(frozen=True, kw_only=True)
class BYOLConfig:
    """A predictor of a momentum teacher's projection of the other view (Grill et al. 2020)."""

    name: Literal["byol"] = "byol"
    """Chosen by --method NAME."""
    momentum: float = 0.996
    """The teacher's at the start; it rises to 1 along a cosine (section 3.1)."""
    predictor_hidden: int = 4096

    def __post_init__(self) -> None:
        require_momentum(self.momentum)
        require_at_least(1, "method", self, "predictor_hidden")


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig:
    """A predictor of the other view's projection, through which no gradient flows (Chen and He 2021)."""

    name: Literal["simsiam"] = "simsiam"
    """Chosen by --method NAME."""
    predictor_hidden: int | None = None
    """A bottleneck; None: a quarter of the projection's dimension, 512 of 2048 in the paper."""
    predictor_decays: bool = False
    """Whether the predictor's learning rate follows the schedule too; the paper keeps it at its peak (section 4.2)."""

    def __post_init__(self) -> None:
        require_at_least(1, "method", self, "predictor_hidden")


@dataclass(frozen=True, kw_only=True)
class MoCoConfig:
    """InfoNCE of queries against a momentum encoder's keys: of a queue (He et al. 2020; v2: Chen et al. 2020), or
    without one of the global batch, with a predictor (v3: Chen et al. 2021)."""

    name: Literal["moco"] = "moco"
    """Chosen by --method NAME."""
    temperature: float = 0.2
    momentum: float = 0.999
    """The key encoder's: constant with a queue; without one it is the start, and rises to 1 along a cosine."""
    queue: int = 4096
    """Keys of earlier batches, a multiple of train.global_batch (65,536 for ImageNet in the paper); 0: MoCo v3."""
    predictor_hidden: int = 4096
    """MoCo v3's."""
    predictor_batchnorm: bool = False
    """MoCo v3's: BatchNorm after the predictor's last layer too, as in the official code for vision transformers."""
    frozen_patches: bool = True
    """MoCo v3's: a vision transformer keeps its random patch projection, which steadies training (section 4)."""

    def __post_init__(self) -> None:
        require_positive("method", self, "temperature")
        require_momentum(self.momentum)
        require_at_least(0, "method", self, "queue")
        require_at_least(1, "method", self, "predictor_hidden")


@dataclass(frozen=True, kw_only=True)
class NNCLRConfig:
    """The nearest of earlier projections to one view against predictions of the other (Dwibedi et al. 2021)."""

    name: Literal["nnclr"] = "nnclr"
    """Chosen by --method NAME."""
    temperature: float = 0.1
    queue: int = 4096
    """Earlier projections to look in, a multiple of train.global_batch (98,304 for ImageNet in the paper)."""
    predictor_hidden: int = 4096

    def __post_init__(self) -> None:
        require_positive("method", self, "temperature")
        require_at_least(1, "method", self, "queue", "predictor_hidden")


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig:
    """The views' cross-correlation matrix becomes the identity (Zbontar et al. 2021)."""

    name: Literal["barlow_twins"] = "barlow_twins"
    """Chosen by --method NAME."""
    off_diagonal_weight: float = 0.005
    """Lambda."""

    def __post_init__(self) -> None:
        require_positive("method", self, "off_diagonal_weight")


@dataclass(frozen=True, kw_only=True)
class VICRegConfig:
    """Weights of the invariance, variance and covariance terms (Bardes et al. 2022, equation 6)."""

    name: Literal["vicreg"] = "vicreg"
    """Chosen by --method NAME."""
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(0, "method", self, "invariance", "variance", "covariance")


@dataclass(frozen=True, kw_only=True)
class SwAVConfig:
    """Each view predicts the other's balanced assignment to prototypes (Caron et al. 2020)."""

    name: Literal["swav"] = "swav"
    """Chosen by --method NAME."""
    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    """Smoothness of the assignment."""
    iterations: int = 3
    """Of Sinkhorn-Knopp."""
    frozen_epochs: float = 0.0
    """Epochs at the start in which the prototypes stay as they are drawn; about one in the official code."""
    queue: int = 0
    """Projections of earlier batches, of each of the first two views, that join the assignment: for batches of fewer
    images than prototypes. A multiple of train.global_batch (3,840 for batches of 256 in the paper); 0: none."""
    queue_epochs: float = 15.0
    """Epochs at the start in which the queue is not used; the default is the official code's. A shorter run needs
    fewer, or never uses it. Too early, projections of earlier batches disturb the assignment."""

    def __post_init__(self) -> None:
        require_positive("method", self, "temperature")
        # Scores are cosines: with this, exp(1 / epsilon) times rows and prototypes is far below float32's largest.
        require(self.epsilon >= 0.015, f"method.epsilon must be at least 0.015, not {self.epsilon}: less overflows")
        require_at_least(1, "method", self, "prototypes", "iterations")
        require_at_least(0, "method", self, "frozen_epochs", "queue", "queue_epochs")


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """A momentum teacher's centred and sharpened distribution is the target (Caron et al. 2021)."""

    name: Literal["dino"] = "dino"
    """Chosen by --method NAME."""
    prototypes: int = 4096
    """Dimensions of the distribution, 65,536 for ImageNet in the paper."""
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    warmup_teacher_temperature: float = 0.04
    """At the start; it rises to teacher_temperature in a straight line."""
    warmup_teacher_epochs: float = 0.0
    frozen_epochs: float = 0.0
    """Epochs at the start in which the prototypes stay as they are drawn; one in the official code."""
    momentum: float = 0.996
    """The teacher's at the start; it rises to 1 along a cosine."""
    center_momentum: float = 0.9

    def __post_init__(self) -> None:
        require_positive("method", self, "student_temperature", "teacher_temperature", "warmup_teacher_temperature")
        require_at_least(0, "method", self, "warmup_teacher_epochs", "frozen_epochs")
        require_at_least(1, "method", self, "prototypes")
        require_momentum(self.momentum)
        require(0 <= self.center_momentum <= 1, "method.center_momentum must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Cross-entropy of a linear classifier of the features: the baseline, which needs labels."""

    name: Literal["supervised"] = "supervised"
    """Chosen by --method NAME."""
    classes: int | None = None
    """None: as many as the dataset names; resolved at the first start."""
    label_smoothing: float = 0.0
    from_head: int = 0
    """So many layers of the mlp head stay between features and classifier (SimCLR v2: 1); with the weights that they
    have in the run that model.init names."""

    def __post_init__(self) -> None:
        require_at_least(1, "method", self, "classes")
        require_at_least(0, "method", self, "from_head")
        require(0 <= self.label_smoothing < 1, "method.label_smoothing must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Cross-entropy to the label distribution of a fine-tuned teacher, without labels (SimCLR v2, equation 2)."""

    name: Literal["distillation"] = "distillation"
    """Chosen by --method NAME."""
    teacher: str | None = None
    """A run with a classifier, such as one that `evaluate RUN finetune` names; or its file, teacher.safetensors of a
    run that was distilled from it. Its network and classes are its own."""
    teacher_sha256: str | None = None
    """Of the teacher, as teacher.safetensors of the run folder holds it; resolved at the first start."""
    temperature: float = 0.1
    """Tau, of both distributions. In the paper 0.1 for a student with its teacher's network, 1.0 for a smaller one."""
    classes: int | None = None
    """None: the teacher's; resolved at the first start."""
    from_head: int = 0
    """Of the student: so many layers of the mlp head stay between features and classifier (SimCLR v2: 1); with the
    weights that they have in the run that model.init names."""

    def __post_init__(self) -> None:
        require_positive("method", self, "temperature")
        require_at_least(1, "method", self, "classes")
        require_at_least(0, "method", self, "from_head")


MethodConfig = (
    SimCLRConfig
    | BYOLConfig
    | SimSiamConfig
    | MoCoConfig
    | NNCLRConfig
    | BarlowTwinsConfig
    | VICRegConfig
    | SwAVConfig
    | DINOConfig
    | SupervisedConfig
    | DistillationConfig
)
MULTI_CROP = (SwAVConfig, DINOConfig)
"""Methods that take local views."""
LABELLED = (SupervisedConfig,)
"""Methods that are trained on labels."""
CLASSIFYING = (SupervisedConfig, DistillationConfig)
"""Methods with a classifier of their own, in the place of a projection head."""
METHODS: dict[str, type[MethodConfig]] = {cls.name: cls for cls in get_args(MethodConfig)}
"""By `method.name`."""


def method_config(name: Any) -> MethodConfig:
    """The method of that name with its own defaults. Raises BadInput."""
    require(name in METHODS, f"no method is called {name!r}: the methods are {', '.join(METHODS)}")
    return METHODS[name]()


def require_momentum(momentum: float) -> None:
    require(0 <= momentum <= 1, f"method.momentum must lie in [0, 1], not {momentum}")
