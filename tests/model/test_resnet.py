"""The encoder is torchvision's ResNet in names and numbers, and its weights are a function of the seed."""

import pytest
import torch
from torch import nn
from torchvision import models

from simclr_ray.config import ModelConfig, SimCLRConfig
from simclr_ray.methods.build import build_encoder, build_method
from simclr_ray.model.resnet import LAYOUTS, BasicBlock, Bottleneck, ResNet


@pytest.mark.parametrize("arch", LAYOUTS)
def test_names_and_shapes_equal_torchvisions(arch):
    with torch.device("meta"):
        ours, theirs = ResNet(arch).state_dict(), getattr(models, arch)().state_dict()
    expected = {name: tensor.shape for name, tensor in theirs.items() if not name.startswith("fc.")}
    assert {name: tensor.shape for name, tensor in ours.items()} == expected


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [False, True])
def test_features_equal_torchvisions(arch, training):
    ours, theirs = ResNet(arch), getattr(models, arch)()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in ours.state_dict().items():  # the zeros of the start would hide the residual branches
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + (0.5 if "var" in name else 0.0))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert unexpected == []
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 96, 96, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        h = ours.double().train(training)(images)
        torch.testing.assert_close(h, theirs.double().train(training)(images), rtol=1e-9, atol=1e-9)
    assert h.shape == (2, ours.feature_dim)


@pytest.mark.parametrize(
    ("arch", "width", "feature_dim"),
    [("resnet18", 1.0, 512), ("resnet18", 0.125, 64), ("resnet50", 2.0, 4096), ("resnet50", 4.0, 8192)],
)
def test_width_multiplies_every_channel_count(arch, width, feature_dim):
    with torch.device("meta"):
        encoder, narrow = ResNet(arch, width=width), ResNet(arch)
    assert encoder.feature_dim == feature_dim
    for name, tensor in narrow.state_dict().items():
        sizes = [
            size if size == 3 and name == "conv1.weight" and i == 1 else size * width
            for i, size in enumerate(tensor.shape[:2])
        ]
        assert list(encoder.state_dict()[name].shape[:2]) == sizes, name


def test_cifar_stem_keeps_the_resolution():
    seen = []
    encoder = ResNet("resnet18", width=0.125, stem="cifar")
    encoder.layer1.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
    assert seen == [(2, 8, 32, 32)]
    assert encoder.conv1.weight.shape == (8, 3, 3, 3)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_blocks_start_as_their_shortcut_and_convolutions_keep_the_variance(arch):
    encoder = build_encoder(ModelConfig(arch=arch), seed=0, size=32)
    blocks = [module for module in encoder.modules() if isinstance(module, (BasicBlock, Bottleneck))]
    assert len(blocks) == sum(LAYOUTS[arch][1])
    for block in blocks:
        last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
        assert not last.weight.any()
        assert bool((block.bn1.weight == 1).all())
    weight = encoder.layer4[1].conv1.weight  # kaiming normal, fan out: variance 2 / (outputs x kernel area)
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5, rel=0.02)


def test_weights_depend_on_the_seed_alone():
    config = ModelConfig(arch="resnet18", width=0.125)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = build_method(config, SimCLRConfig(), seed=3, size=32).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "the global generator moved"
    torch.manual_seed(6)
    again, other = (
        build_method(config, SimCLRConfig(), seed=3, size=32).state_dict(),
        build_method(config, SimCLRConfig(), seed=4, size=32).state_dict(),
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_the_head_does_not_change_the_encoders_initial_weights():
    with_head = build_method(ModelConfig(arch="resnet18", width=0.125), SimCLRConfig(), seed=3, size=32)
    without = build_method(ModelConfig(arch="resnet18", width=0.125, head="none"), SimCLRConfig(), seed=3, size=32)
    expected = with_head.encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in without.encoder.state_dict().items())


def test_a_strided_shortcut_of_a_narrow_layer_equals_torchs_convolution() -> None:
    """Ours does not call oneDNN's kernel, which corrupts memory on a CPU without AVX512."""
    ours = BasicBlock(6, 12, stride=2).double().downsample[0]
    theirs = nn.Conv2d(6, 12, 1, stride=2, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
