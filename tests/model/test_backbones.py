"""torchvision's and timm's networks as encoders: the same features, without what would depend on the workers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import tiny_networks
from gloo import run_workers
from simclr_ray import collective
from simclr_ray.config import BadInput, Config, ModelConfig
from simclr_ray.methods.build import build_encoder
from simclr_ray.model.backbones import ViT
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.model.build import draw_encoder
from simclr_ray.model.encoder import Encoder

NETWORKS = [f"torchvision:{tiny_networks.VIT}", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet", "timm:test_vit"]


def encoder_of(arch: str, size: int = 32) -> Encoder:
    return build_encoder(ModelConfig(arch=arch), seed=1, size=size)


def images(count: int, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def theirs_of(arch: str, size: int) -> nn.Module:
    """The library's own network, its classifier replaced by the identity in the way that it documents."""
    library, _, name = arch.partition(":")
    if library == "timm":
        timm = pytest.importorskip("timm")
        sized = {"img_size": size} if "vit" in name else {}
        return timm.create_model(name, num_classes=0, **sized)
    net = models.get_model(name, **({"image_size": size} if name.startswith("vit") else {}))
    setattr(net, "heads" if name.startswith("vit") else "fc", nn.Identity())
    return net


@pytest.mark.parametrize("arch", NETWORKS)
def test_features_are_the_librarys(arch: str) -> None:
    encoder, theirs = encoder_of(arch), theirs_of(arch, 32)
    theirs.load_state_dict(encoder.network.state_dict())
    with torch.no_grad():
        h = encoder.eval()(images(4))
        torch.testing.assert_close(h, theirs.eval()(images(4)), rtol=1e-5, atol=1e-5)
    assert h.shape == (4, encoder.feature_dim)


@pytest.mark.parametrize("arch", NETWORKS)
def test_nothing_is_left_that_depends_on_the_generator_or_on_the_workers(arch: str) -> None:
    encoder = encoder_of(arch).train()
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in encoder.modules())
    torch.manual_seed(3)
    first = copy.deepcopy(encoder)(images(4))
    torch.manual_seed(4)
    torch.testing.assert_close(encoder(images(4)), first, rtol=0, atol=0)


def test_dropout_and_stochastic_depth_are_off() -> None:
    """Of networks that have them by default: 0.2 and 0.2 of EfficientNet, 0.5 of AlexNet."""
    with torch.device("meta"):
        for arch in ("torchvision:efficientnet_b0", "torchvision:alexnet"):
            rates = [layer.p for layer in draw_encoder(ModelConfig(arch=arch), 224).modules() if hasattr(layer, "p")]
            assert rates
            assert not any(rates)


def step(arch: str) -> dict[str, Tensor]:
    """Features' gradients and BatchNorm statistics after a forward and backward over this worker's rows of twelve."""
    encoder, rows = encoder_of(arch).double().train(), images(12, dtype=torch.float64)
    own = rows[[range(12), range(0, 5), range(5, 12)][collective.size() - 1 + collective.rank()]]
    (encoder(own).square().sum() / 12).backward()
    parameters = [parameter for parameter in encoder.parameters() if parameter.grad is not None]
    collective.sum_gradients(parameters)
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return gradients | dict(encoder.named_buffers())


def steps() -> dict[str, dict[str, Tensor]]:
    return {arch: step(arch) for arch in NETWORKS}


def test_two_workers_equal_one() -> None:
    alone = steps()
    for results in run_workers(2, steps):
        for arch, values in alone.items():
            for name, expected in values.items():
                torch.testing.assert_close(results[arch][name], expected, rtol=1e-9, atol=1e-9, msg=f"{arch}: {name}")


def test_weights_are_a_function_of_the_seed_and_batchnorm_keeps_its_settings() -> None:
    torch.manual_seed(0)
    one = encoder_of("torchvision:mnasnet0_5")
    torch.manual_seed(1)
    other = encoder_of("torchvision:mnasnet0_5")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    layer = next(layer for layer in one.modules() if isinstance(layer, BatchNorm))
    assert layer.momentum == pytest.approx(1 - 0.9997)  # mnasnet's own


def test_a_vision_transformer_takes_images_of_other_sizes() -> None:
    """Its position embedding is interpolated, so that a constant one stays what it is."""
    encoder = encoder_of(NETWORKS[0])
    assert isinstance(encoder, ViT)
    assert encoder(images(2, 16)).shape == (2, encoder.feature_dim)
    nn.init.constant_(encoder.net.encoder.pos_embedding, 0.5)
    torch.testing.assert_close(encoder._positions(4, 4), torch.full((1, 17, 24), 0.5))
    assert encoder.patch_projection is encoder.net.conv_proj


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.arch": "resnet51"}, "no model.arch is called 'resnet51': did you mean resnet5"),
        ({"model.arch": "lightly:resnet50"}, "a prefix is torchvision: or timm:"),
        ({"model.arch": "torchvision:"}, "a prefix is torchvision: or timm:"),
        ({"model.arch": "torchvision:vit_b_16", "model.width": 0.5}, "set them to 1 and imagenet"),
        ({"model.arch": "torchvision:vit_b_17"}, "no image classifier 'vit_b_17': did you mean vit_b_16"),
        ({"model.arch": "torchvision:fcos_resnet50_fpn"}, "no image classifier 'fcos_resnet50_fpn'"),
        ({"model.arch": "torchvision:squeezenet1_0"}, "has no dense classifier"),
        ({"model.arch": "torchvision:vit_b_16", "augment.size": 100}, "cannot take views of 100 pixels"),
        ({"model.arch": "timm:resnet51"}, "timm has no network 'resnet51': did you mean"),
    ],
)
def test_a_wrong_network_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        drawn_on_meta(changes)


def drawn_on_meta(changes: dict[str, Any]) -> None:
    config = Config().with_overrides(changes)
    with torch.device("meta"):
        draw_encoder(config.model, config.augment.size)
