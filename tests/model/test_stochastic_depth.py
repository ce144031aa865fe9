"""Our layers in the networks of torchvision and timm: whose branches they drop, and that nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import tiny_networks
from simclr_ray.config import BadInput, Config, ModelConfig
from simclr_ray.data.branches import kept_branches
from simclr_ray.methods.build import build_encoder
from simclr_ray.methods.momentum import teacher_of
from simclr_ray.model.build import draw_encoder
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.stochastic_depth import KeyedStochasticDepth, keeping
from simclr_ray.train.branches import require_masks_fit

VIT = f"torchvision:{tiny_networks.VIT}"
RATE = 0.4
ROUNDING = {"rtol": 1e-11, "atol": 1e-12}
NETWORKS = {
    VIT: [RATE] * 2,  # both branches of the last of two blocks
    "timm:test_vit": [0.08, 0.08, 0.16, 0.16, 0.24, 0.24, 0.32, 0.32, 0.4, 0.4],
    "torchvision:swin_t": [RATE * block / 11 for block in range(1, 12)],  # one layer for both branches
    "timm:test_convnext": [RATE * block / 8 for block in range(1, 9)],
}


def encoder_of(arch: str, drop_path: float = RATE) -> Encoder:
    encoder = build_encoder(ModelConfig(arch=arch, drop_path=drop_path), seed=1, size=32)
    for name, weight in encoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(weight)  # ConvNeXt's layer scale of 1e-6 would hide what happens to a branch
    return encoder.double().train()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def masks(encoder: Encoder, count: int) -> Tensor:
    rates = [layer.rate for layer in encoder.stochastic_depth]
    return torch.from_numpy(kept_branches(5, 6, np.arange(count), [0], rates))[:, 0]


class Factors(nn.Module):
    """Multiplies the branches of one image by numbers, one call after the other."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = iter(factors)

    def forward(self, branch: Tensor) -> Tensor:
        return branch * next(self.factors)


@pytest.mark.parametrize("arch", NETWORKS)
def test_each_row_drops_its_own_branches(arch: str) -> None:
    """Against the network forwarded image by image with 0 or 1 / (1 - p) in place of every layer."""
    encoder, x = encoder_of(arch), images(6)
    kept = masks(encoder, len(x))
    assert not kept.all()
    with keeping(encoder.stochastic_depth, kept):
        h = encoder(x)
    for row, image in enumerate(x):
        slow = copy.deepcopy(encoder)
        paths = [path for path, layer in slow.named_modules() if isinstance(layer, KeyedStochasticDepth)]
        for own, path in zip(kept[row], paths, strict=True):
            rate = slow.get_submodule(path).rate
            slow.set_submodule(path, Factors([float(bit) / (1 - float(rate)) for bit in own]))
        torch.testing.assert_close(h[row], slow(image[None])[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("arch", NETWORKS)
def test_rates_rise_in_a_straight_line_to_that_of_the_last_block(arch: str) -> None:
    """The first block's is 0."""
    rates = [layer.rate for layer in encoder_of(arch).stochastic_depth]
    assert rates == pytest.approx(NETWORKS[arch], abs=1e-6)


@pytest.mark.parametrize("arch", NETWORKS)
def test_weights_and_their_names_are_those_without_it(arch: str) -> None:
    """At a rate of 0 there is no layer of ours at all."""
    without, encoder = encoder_of(arch, 0.0), encoder_of(arch)
    assert not any(isinstance(layer, KeyedStochasticDepth) for layer in without.modules())
    own, theirs = encoder.state_dict(), without.state_dict()
    assert list(own) == list(theirs)
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    assert encoder.settings == without.settings  # what export says that the library is to be asked for


@pytest.mark.parametrize("arch", NETWORKS)
def test_evaluation_and_a_teacher_drop_nothing(arch: str) -> None:
    encoder, without, x = encoder_of(arch), encoder_of(arch, 0.0), images(3)
    with torch.no_grad():
        teacher, expected = teacher_of(encoder), without(x)
        torch.testing.assert_close(teacher(x), expected, **ROUNDING)
        with keeping(encoder.stochastic_depth, torch.zeros_like(masks(encoder, len(x)))):
            torch.testing.assert_close(teacher(x), expected, **ROUNDING)  # the student's masks are not the teacher's
            assert (encoder(x) - expected).abs().max() > 0.01
        torch.testing.assert_close(encoder.eval()(x), without.eval()(x), **ROUNDING)
        with pytest.raises(AssertionError, match="without the masks of its rows"):
            encoder.train()(x)


def test_a_layer_scales_as_torchvisions_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = KeyedStochasticDepth(0.3), StochasticDepth(0.3, "row")
    kept, branch = torch.tensor([True, False, True]), torch.randn(3, 4, 2, 2)
    monkeypatch.setattr(Tensor, "bernoulli_", lambda noise, p: noise.copy_(kept.view(-1, 1, 1, 1)))
    for dtype in (torch.float32, torch.bfloat16):
        with keeping([ours], kept[:, None, None]):
            assert torch.equal(ours(branch.to(dtype)), theirs(branch.to(dtype)))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18", "model.drop_path: resnet18 has no stochastic depth; set it to 0, or choose torchvision's vit"),
        ("torchvision:resnet18", "model.drop_path: torchvision:resnet18 has no stochastic depth; set it to 0, or"),
        ("timm:vgg11", "model.drop_path: timm:vgg11 has no stochastic depth; set it to 0, or choose"),
        ("timm:coat_tiny", "do not get one row for each image .*or more than 4 times: set it to 0"),
        ("timm:tnt_s_patch16_224", r"one row for each image \(392 of 2\)"),
    ],
)
def test_a_network_that_cannot_is_named(arch: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        drawn_and_tried(arch)


def drawn_and_tried(arch: str) -> None:
    with torch.device("meta"):
        encoder = draw_encoder(ModelConfig(arch=arch, drop_path=0.1), 224)
    require_masks_fit(encoder, 224)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_is_below_one(rate: float) -> None:
    with pytest.raises(BadInput, match=r"model.drop_path must lie in \[0, 1\)"):
        Config().with_overrides({"model.arch": VIT, "model.drop_path": rate})
