"""torchvision's and timm's classifiers as encoders: without their classifier, with our BatchNorm.

Dropout has rate 0: its masks are drawn from a process's generator, and would depend on the number of workers. So are
those of the libraries' stochastic depth, in whose place is ours. What remains computes each image's features from that
image alone, but for BatchNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision import models
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops import StochasticDepth

from simclr_ray.config import BadInput
from simclr_ray.config.science import HAVE_STOCHASTIC_DEPTH
from simclr_ray.config.suggest import suggestion
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.stochastic_depth import KeyedStochasticDepth

IMAGENET_CLASSES = 1000


class Backbone(Encoder):
    """A network whose output are the features.

    `settings`: what its library was asked for beside the name. `removed`: the path of the classifier that the library's
    network has and this one has not; None: by its settings it has none.
    """

    def __init__(
        self, net: nn.Module, feature_dim: int, settings: Mapping[str, Any], removed: str | None = None
    ) -> None:
        super().__init__()
        self.net, self.feature_dim, self.settings, self.removed = net, feature_dim, settings, removed
        self.stochastic_depth = [layer for layer in net.modules() if isinstance(layer, KeyedStochasticDepth)]

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.net(images)

    @property
    def network(self) -> nn.Module:
        return self.net

    @property
    def patch_projection(self) -> nn.Module | None:
        embedding = getattr(self.net, "patch_embed", None)  # timm's vision transformers
        return getattr(embedding, "proj", None)


class ViT(Backbone):
    """torchvision's vision transformer for images of any size: its position embedding is interpolated to theirs."""

    net: VisionTransformer

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        net = self.net
        patches = net.conv_proj(images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([net.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(patches.shape[2], patches.shape[3])
        return net.encoder.ln(net.encoder.layers(tokens))[:, 0]

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "1 t d"]:
        embedding, side = self.net.encoder.pos_embedding, self.net.image_size // self.net.patch_size
        if (rows, columns) == (side, side):
            return embedding
        grid = embedding[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        resized = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([embedding[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    @property
    def patch_projection(self) -> nn.Module:
        return self.net.conv_proj


def torchvision_encoder(name: str, size: int, drop_path: float = 0.0) -> Encoder:
    """The classifier `name` of torchvision without its last dense layer; for views of `size` pixels.

    `drop_path`: of the last block. Raises BadInput for an unknown name, a network without a dense classifier or, where
    it is asked for, without stochastic depth, and a size that it cannot take.
    """
    names = [known for known in models.list_models() if _is_classifier(known)]
    if name not in names:
        raise BadInput(f"torchvision has no image classifier {name!r}{suggestion(name, names)}")
    settings = _settings(name, size)
    try:
        net = _built(lambda: models.get_model(name, weights=None, **settings))
    except (AssertionError, ValueError) as error:
        raise BadInput(f"torchvision:{name} cannot take views of {size} pixels ({error}): set augment.size") from None
    dense = [(path, layer) for path, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not dense or dense[-1][1].out_features != IMAGENET_CLASSES:
        raise BadInput(f"torchvision:{name} has no dense classifier to remove: choose another model.arch")
    path, classifier = dense[-1]
    net.set_submodule(path, nn.Identity())
    rates = _make_exact(net)
    if isinstance(net, VisionTransformer):
        rates = _vit_rates(net)
    _drop_branches(net, rates, drop_path, f"torchvision:{name}")
    kind = ViT if isinstance(net, VisionTransformer) else Backbone
    return kind(net, classifier.in_features, settings, path)


def _is_classifier(name: str) -> bool:
    """torchvision.models.resnet is a module of classifiers, torchvision.models.detection.fcos is not."""
    module = models.get_model_builder(name).__module__
    return not module.startswith("torchvision.") or module.count(".") == 2


def _settings(name: str, size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit_"):
        return {"input_size": (size, size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def timm_for(name: str) -> ModuleType:
    """timm, an optional dependency. Raises BadInput if it is not installed; `name`: what of it is wanted."""
    try:
        return import_module("timm")
    except ImportError:
        raise BadInput(f"timm:{name} needs timm, which is not installed: pip install 'simclr_ray[timm]'") from None


def timm_encoder(name: str, size: int, drop_path: float = 0.0) -> Encoder:
    """The network `name` of timm without its classifier; for views of `size` pixels where it has a fixed size.

    `drop_path`: of the last block. Raises BadInput if timm is not installed, for an unknown name, for a size that it
    cannot take, and for a network without the stochastic depth that is asked for.
    """
    timm = timm_for(name)
    if not timm.is_model(name):
        raise BadInput(f"timm has no network {name!r}{suggestion(name.partition('.')[0], timm.list_models())}")
    # Only networks of a fixed size have these arguments; which they are is known when they are tried.
    tried: list[dict[str, Any]] = [{"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}]
    asked = {"drop_path_rate": drop_path} if drop_path else {}
    for settings in tried:
        try:
            net = _built(partial(timm.create_model, name, pretrained=False, num_classes=0, **asked, **settings))
            break
        except TypeError as error:
            if "drop_path_rate" in str(error):
                raise _no_stochastic_depth(f"timm:{name}") from None
            if not settings:
                raise
        except AssertionError as error:
            raise BadInput(f"timm:{name} cannot take views of {size} pixels ({error}): set augment.size") from None
    _drop_branches(net, _make_exact(net), drop_path, f"timm:{name}")
    features: Any = getattr(net, "head_hidden_size", net.num_features)
    return Backbone(net, features, {"num_classes": 0} | settings)


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """The network on torch's default device; on the CPU and moved where it cannot be built on "meta"."""
    try:
        return build()
    except NotImplementedError:
        device = torch.get_default_device()
        with torch.device("cpu"):
            return build().to(device)


class BatchNormAct(BatchNorm):
    """Our BatchNorm in place of timm's, which includes the activation."""

    def __init__(self, num_features: int, act: nn.Module, *, momentum: float, eps: float) -> None:
        super().__init__(num_features, momentum=momentum, eps=eps)
        self.act = act

    def forward(self, x: Float[Tensor, "n c *hw"]) -> Float[Tensor, "n c *hw"]:
        return self.act(super().forward(x))


def _make_exact(net: nn.Module) -> dict[str, float]:
    """Replaces what would depend on the workers: every BatchNorm by ours, rates of dropout and stochastic depth by 0.

    Returns the rates that the library's layers of stochastic depth had, by their paths.
    """
    rates: dict[str, float] = {}
    for path, layer in list(net.named_modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            net.set_submodule(path, _our_batchnorm(layer))
        elif isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        elif isinstance(layer, StochasticDepth):
            rates[path], layer.p = layer.p, 0.0
        elif type(layer).__name__ == "DropPath":
            rates[path], layer.drop_prob = layer.drop_prob, 0.0
    return rates


def _vit_rates(net: VisionTransformer) -> dict[str, float]:
    """Rates of torchvision's vision transformer, which has no stochastic depth: in place of the dropouts that end both
    branches of a block, as in timm's; 0 at the first block and 1 at the last."""
    blocks = [path for path, block in net.named_modules() if isinstance(block, EncoderBlock)]
    return {
        f"{path}.{branch}": number / max(1, len(blocks) - 1)
        for number, path in enumerate(blocks)
        for branch in ("dropout", "mlp.4")
    }


def _drop_branches(net: nn.Module, rates: Mapping[str, float], drop_path: float, name: str) -> None:
    """Puts our stochastic depth at these paths, with these rates times what makes the highest `drop_path`."""
    if drop_path == 0:
        return
    highest = max(rates.values(), default=0.0)
    if highest == 0:
        raise _no_stochastic_depth(name)
    for path, rate in rates.items():
        if rate > 0:
            net.set_submodule(path, KeyedStochasticDepth(drop_path * rate / highest))


def _no_stochastic_depth(name: str) -> BadInput:
    return BadInput(f"model.drop_path: {name} has no stochastic depth; {HAVE_STOCHASTIC_DEPTH}")


def _our_batchnorm(layer: nn.modules.batchnorm._BatchNorm) -> BatchNorm:
    assert layer.affine, layer
    assert layer.momentum is not None, layer
    act = getattr(layer, "act", None)
    if act is None:
        ours = BatchNorm(layer.num_features, momentum=layer.momentum, eps=layer.eps)
    else:
        ours = BatchNormAct(layer.num_features, act, momentum=layer.momentum, eps=layer.eps)
    ours.load_state_dict(layer.state_dict())
    return ours
