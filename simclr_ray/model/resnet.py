"""ResNet encoders: normalised images in, pooled features h out, under torchvision's weight names."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.model.encoder import Encoder


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016); ResNet-18 and -34."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, planes, kernel=3, stride=stride)
        self.bn1 = BatchNorm(planes)
        self.conv2 = _convolution(planes, planes, kernel=3)
        self.bn2 = BatchNorm(planes)
        self.downsample = _shortcut(channels, planes * self.expansion, stride)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; ResNet-50 and deeper. The 3x3 strides, as in torchvision."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, planes, kernel=1)
        self.bn1 = BatchNorm(planes)
        self.conv2 = _convolution(planes, planes, kernel=3, stride=stride)
        self.bn2 = BatchNorm(planes)
        self.conv3 = _convolution(planes, planes * self.expansion, kernel=1)
        self.bn3 = BatchNorm(planes * self.expansion)
        self.downsample = _shortcut(channels, planes * self.expansion, stride)
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


NARROW = 16
"""Fewer channels than a vector register holds floats: strided shortcuts then avoid oneDNN (_StridedPointwise)."""

LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(Encoder):
    """The encoder f of SimCLR (section 2.1): a ResNet without its classifier.

    `width` multiplies every channel count, as in the official SimCLR code (a 2x ResNet-50 has 4096 features);
    torchvision's wide_resnet50_2 widens the inner 3x3 convolutions only and is another network. The `cifar` stem
    is a 3x3 convolution of stride 1 without max pool (appendix B.9). The last BatchNorm of each block starts at
    zero, so that every block starts as its shortcut (Goyal et al. 2017).
    """

    def __init__(self, arch: str, *, width: float = 1.0, stem: str = "imagenet") -> None:
        super().__init__()
        block, depths = LAYOUTS[arch]
        planes = int(64 * width)
        self.arch, self.width, self.stem = arch, width, stem
        self.feature_dim = 8 * planes * block.expansion
        large = stem == "imagenet"
        self.conv1 = _convolution(3, planes, kernel=7 if large else 3, stride=2 if large else 1)
        self.bn1 = BatchNorm(planes)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if large else nn.Identity()
        inner = planes * block.expansion
        self.layer1 = _stage(block, planes, planes, depths[0], stride=1)
        self.layer2 = _stage(block, inner, 2 * planes, depths[1], stride=2)
        self.layer3 = _stage(block, 2 * inner, 4 * planes, depths[2], stride=2)
        self.layer4 = _stage(block, 4 * inner, 8 * planes, depths[3], stride=2)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """The features h, averaged over positions; d is `feature_dim`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.mean(x, dim=(2, 3))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, depth: int, stride: int
) -> nn.Module:
    first = block(channels, planes, stride)
    return nn.Sequential(first, *(block(planes * block.expansion, planes, 1) for _ in range(depth - 1)))


def _shortcut(channels: int, out: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels == out:
        return None
    if channels < NARROW:
        return nn.Sequential(_initialised(_StridedPointwise(channels, out, 1, stride, bias=False)), BatchNorm(out))
    return nn.Sequential(_convolution(channels, out, kernel=1, stride=stride), BatchNorm(out))


class _StridedPointwise(nn.Conv2d):
    """A strided 1x1 convolution as one of stride 1 on every second pixel: the same sums.

    oneDNN's own, on channels_last, writes past its buffer in backward on CPUs without AVX512 where a layer has fewer
    than eight channels (oneDNN issue 6035, in torch 2.15): the process crashes, or trains on wrong gradients.
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight)


def _convolution(channels: int, out: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    return _initialised(nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False))


def _initialised(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
