"""The settings that affect the result, beside the method's: data, views, network, optimizer, batch, the check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simclr_ray.config.checks import require, require_at_least, require_positive
from simclr_ray.config.suggest import suggestion

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
LIBRARIES = ("torchvision", "timm")
MOST_LOCAL_VIEWS = 32
HAVE_STOCHASTIC_DEPTH = (
    "set it to 0, or choose torchvision's vit, convnext, swin, efficientnet or maxvit, or a network of timm that has "
    "it, such as timm:resnet50"
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images: their address, normalisation, and how many may be bad."""

    train: str = "synthetic:4096"
    """A prepared dataset, or anything that experiments/prepare.py takes: it is then prepared once into the storage."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means of [0, 1] images, subtracted on the device (ImageNet's by default)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations, divided by on the device."""
    max_bad_fraction: float = 0.001
    """The run ends when more images than max(10, this fraction of the rows) cannot be decoded."""

    def __post_init__(self) -> None:
        require(bool(self.train), "data.train is empty: give a folder of images or a prepared dataset")
        require(min(self.std) > 0, f"data.std must be positive, not {self.std}")
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The distribution of views (SimCLR, appendix A). The defaults are those of ImageNet."""

    size: int = 224
    """Side of a view in pixels."""
    crop_min: float = 0.08
    """Smallest fraction of the image's area in a crop."""
    crop_max: float = 1.0
    """Largest fraction."""
    flip_p: float = 0.5
    strength: float = 1.0
    """s: brightness, contrast and saturation up to 0.8 s, hue up to 0.2 s."""
    saturation: float | None = None
    """The largest change of saturation, where it is not 0.8 s."""
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    solarize_p: float = 0.0
    """Values of 128 and more are inverted (BYOL, appendix B)."""
    rotate_p: float = 0.0
    """A turn by 90, 180 or 270 degrees. This and the next three are of SimCLR's figure 5, and of no recipe."""
    sobel_p: float = 0.0
    """Each channel becomes its gradient's magnitude."""
    noise_p: float = 0.0
    """Gaussian noise with a standard deviation of a tenth of the range of values."""
    cutout_p: float = 0.0
    """A square of half the view's side becomes grey."""
    second_blur_p: float | None = None
    """The second view's, where it is not the first one's."""
    second_solarize_p: float | None = None
    """The second view's, where it is not the first one's."""
    second_plain: bool = False
    """Only the first view is augmented; the second is the whole image, or its centre up to 4:3 (SimCLR, figure 5)."""
    local_views: int = 0
    """Further, smaller views of every image (multi-crop), for swav and dino; never solarized."""
    local_size: int = 96
    """Side of a local view in pixels."""
    local_crop_min: float = 0.05
    local_crop_max: float = 0.14
    local_blur_p: float | None = None
    """Of the local views, where it is not the first one's."""

    def __post_init__(self) -> None:
        self._check_sizes()
        require(0 <= self.strength <= 2.5, f"augment.strength must lie in [0, 2.5], not {self.strength}")
        require(0 <= (self.saturation or 0) <= 2, f"augment.saturation must lie in [0, 2], not {self.saturation}")
        own = ("flip_p", "jitter_p", "grayscale_p", "blur_p", "solarize_p", "second_blur_p", "second_solarize_p")
        for name in (*own, "local_blur_p", "rotate_p", "sobel_p", "noise_p", "cutout_p"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"augment.{name} is a probability, not {value}")
        require(
            not self.second_plain or (self.second_blur_p is None and self.second_solarize_p is None),
            "augment.second_plain leaves the second view as it is: leave out second_blur_p and second_solarize_p",
        )
        require(
            0 < self.blur_sigma_min <= self.blur_sigma_max, "augment.blur_sigma_min must lie in (0, blur_sigma_max]"
        )

    def _check_sizes(self) -> None:
        for name in ("size", "local_size"):
            value = getattr(self, name)
            require(8 <= value <= 1024, f"augment.{name} must lie in 8..1024 pixels, not {value}")
        for low, high in (("crop_min", "crop_max"), ("local_crop_min", "local_crop_max")):
            smallest, largest = getattr(self, low), getattr(self, high)
            require(0 < smallest <= 1, f"augment.{low} must lie in (0, 1], not {smallest}")
            require(smallest <= largest <= 1, f"augment.{high} must lie in [augment.{low}, 1], not {largest}")
        require(0 <= self.local_views <= MOST_LOCAL_VIEWS, f"augment.local_views must lie in 0..{MOST_LOCAL_VIEWS}")
        require(
            not self.local_views or self.local_size <= self.size,
            f"augment.local_size {self.local_size}: local views are no larger than the others, of {self.size} pixels; "
            f"set it to {max(8, self.size * 3 // 7)} or so",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder, and the projection head, which is discarded after pretraining."""

    arch: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101 or resnet152; torchvision:NAME, any of its image classifiers, such as
    torchvision:vit_b_16; or timm:NAME. Of those two the classifier is removed."""
    width: float = 1.0
    """Of a resnet: multiplies every channel count: 1, 2, 4, or a fraction."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """Of a resnet. imagenet: 7x7 stride 2 and max pool; cifar: 3x3 stride 1 and no pool, for images of 32 px and below.
    """
    init: str | None = None
    """Weights that the encoder starts from: torchvision:NAME or torchvision:WEIGHTS, such as
    torchvision:ResNet50_Weights.IMAGENET1K_V2; timm:NAME; a run; a file. None: drawn from the seed."""
    init_sha256: str | None = None
    """Of those weights, as initial.safetensors of the run folder holds them; resolved at the first start."""
    drop_path: float = 0.0
    """Stochastic depth: the probability that a view skips a residual branch of the last block; of the others it rises
    linearly from 0 at the first (a few of timm's have their own rule). Of torchvision: and timm: networks that have it;
    teachers skip none. Dropout of single values is off."""
    head: Literal["none", "linear", "mlp"] = "mlp"
    head_layers: Literal[2, 3] = 2
    """Layers of the mlp head."""
    head_hidden: int | None = None
    """Hidden width of the mlp head; None: that of the feature."""
    head_dim: int = 128
    """Dimension of the projection z (not used by the head `none`)."""
    head_batchnorm: bool = False
    """BatchNorm after every layer of the mlp head, whose dense layers then have no bias."""
    head_activation: Literal["relu", "gelu"] = "relu"
    """Between the layers of the mlp head (DINO: gelu)."""

    def __post_init__(self) -> None:
        library, _, name = self.arch.rpartition(":")
        if library:
            require(library in LIBRARIES and bool(name), f"model.arch {self.arch}: a prefix is torchvision: or timm:")
            own = self.width == 1 and self.stem == "imagenet"
            require(own, f"model.width and model.stem are of a resnet: with {self.arch} set them to 1 and imagenet")
        else:
            require(name in RESNETS, f"no model.arch is called {name!r}{suggestion(name, RESNETS)}")
            require(self.drop_path == 0, f"model.drop_path: {name} has no stochastic depth; {HAVE_STOCHASTIC_DEPTH}")
        require(0 <= self.drop_path < 1, f"model.drop_path must lie in [0, 1), not {self.drop_path}")
        planes = 64 * self.width
        require(planes >= 1 and planes == int(planes), f"model.width must make 64 x width whole, not {self.width}")
        require(self.init is not None or self.init_sha256 is None, "model.init_sha256 needs model.init")
        require_at_least(1, "model", self, "head_dim", "head_hidden")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    lr_per_256: float = 0.3
    """Learning rate at a global batch of 256; see lr_scaling."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """linear: lr_per_256 x B / 256; sqrt: lr_per_256 x sqrt(B / 256) (the paper's 0.075 sqrt(B) is 1.2 here)."""
    lr_end_fraction: float = 0.0
    """Learning rate at the end, as a fraction of its peak (DINO on vision transformers: 0.001)."""
    bias_lr_fraction: float = 1.0
    """Learning rate of biases and BatchNorm's parameters, as a fraction of that of weights (Barlow Twins: 0.024)."""
    momentum: float = 0.9
    """Momentum of lars and sgd."""
    nesterov: bool = False
    """sgd: with Nesterov's momentum."""
    weight_decay: float = 1e-6
    weight_decay_end: float | None = None
    """None: constant; else weight decay goes from weight_decay at the start to this at the end, along half a cosine
    (DINO on vision transformers: from 0.04 to 0.4)."""
    clip_grad_norm: float | None = None
    """Gradients whose norm, of all of them together, is larger are scaled down to it; None: none are."""
    trust_coefficient: float = 0.001
    """LARS's eta."""
    warmup_epochs: float = 10.0

    def __post_init__(self) -> None:
        require_positive("optim", self, "lr_per_256", "bias_lr_fraction", "trust_coefficient", "clip_grad_norm")
        require(0 <= self.lr_end_fraction <= 1, f"optim.lr_end_fraction must lie in [0, 1], not {self.lr_end_fraction}")
        require(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), not {self.momentum}")
        require_at_least(0, "optim", self, "weight_decay", "weight_decay_end", "warmup_epochs")
        require(
            not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0),
            "optim.nesterov is for optim.optimizer sgd with momentum: leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Epochs, batch, precision and seed."""

    epochs: int = 100
    global_batch: int = 4096
    """B: images in a step, over all workers; a multiple of the dataset's slice_rows."""
    pass_size: int | None = None
    """Images in one forward over all workers, a divisor of B; BatchNorm is over both their views. None: B."""
    precision: Literal["auto", "float64", "float32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU (float32 on a V100, T4 or older one) and on a CPU with instructions for it
    (AVX512-BF16, AMX), else float32; resolved at the first start and then fixed. float32 on a GPU: convolutions in
    TF32, all else in float32, and features for evaluation in bf16."""
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
    """The check during training, off unless every_epochs is set; and the probe, a curve at every metrics row."""

    every_epochs: int = 0
    """Epochs between two checks, and one at the end; 0: none."""
    method: Literal["knn", "linear", "rankme", "probe"] = "knn"
    """knn: kNN accuracy; linear: also that of a linear classifier; rankme: rankme alone, which needs no labels; probe:
    the accuracy that evaluate.probe has come to, which reads no image."""
    train: str | None = None
    """Labelled images for the bank; None: data.train."""
    test: str | None = None
    """Labelled images to classify: a dataset, or anything that prepare takes. None: rows held out of the bank's."""
    bank_rows: int = 50_000
    """The bank is the first so many rows of the (shuffled) training set."""
    test_rows: int = 10_000
    """The first so many rows of the test set, or without one the last of the training set (at most half of it)."""
    projections: bool = False
    """Also measure the projections z that the head makes of the features h: z_knn_top1, z_linear_top1 and so on."""
    neighbours: int = 200
    temperature: float = 0.1
    keep_best: bool = False
    """Also write the encoder of the best check, as best.safetensors."""
    patience: int | None = None
    """End the run after so many checks in a row without a better one than the best before; None: never."""
    probe: bool = False
    """Train a linear classifier on the features beside the method, which it does not change: probe_top1 and probe_loss
    of every metrics row. It ranks runs and shows when one stalls; on augmented views, and always a little behind the
    encoder, it is lower than what the check measures. Images without a label are left out."""
    probe_classes: int | None = None
    """None: as many as the dataset names; resolved at the first start."""

    def __post_init__(self) -> None:
        require_at_least(0, "evaluate", self, "every_epochs")
        require_at_least(1, "evaluate", self, "bank_rows", "test_rows", "neighbours", "patience", "probe_classes")
        require(
            self.every_epochs > 0 or not (self.keep_best or self.patience),
            "evaluate.keep_best and evaluate.patience go by the checks: set evaluate.every_epochs",
        )
        require(self.probe or self.method != "probe", "evaluate.method probe needs a probe: set evaluate.probe too")
        require_positive("evaluate", self, "temperature")
