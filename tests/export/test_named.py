"""Encoders by name: their network, their weights, and the images that these were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import models

from simclr_ray.config import BadInput
from simclr_ray.export import named
from simclr_ray.export.encoder import Pretrained, export_encoder, load_pretrained
from simclr_ray.export.named import load_named
from simclr_ray.export.transform import Transform
from simclr_ray.methods.build import build_encoder
from small_runs import TINY

IMAGENET = Transform(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OWN = TINY.with_overrides({"data.mean": (0.5, 0.5, 0.5), "data.std": (0.25, 0.25, 0.25)})
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = str(tmp_path_factory.mktemp("own"))
    export_encoder(build_encoder(OWN.model, seed=0, size=16), OWN, folder)
    return load_pretrained(folder)


def theirs() -> torch.nn.Module:
    torch.manual_seed(3)
    return models.resnet18().eval()


def features_of_theirs() -> torch.Tensor:
    net = theirs()
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        return net(IMAGES)


@pytest.mark.parametrize("arch", ["resnet18", "torchvision:resnet18"])
def test_a_file_of_a_named_network_has_the_images_of_its_library(arch: str, own: Pretrained, tmp_path: Path) -> None:
    torch.save(theirs().state_dict(), tmp_path / "theirs.pth")
    encoder, transform = load_named(f"{arch}={tmp_path / 'theirs.pth'}", own)
    assert transform == IMAGENET
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), features_of_theirs(), rtol=1e-5, atol=1e-5)


def test_published_weights_have_their_network_and_images(own: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "published_weights", lambda _: theirs().state_dict())
    for name in ("torchvision:resnet18", "torchvision:ResNet18_Weights.IMAGENET1K_V1", "timm:resnet18"):
        encoder, transform = load_named(name, own)
        assert transform == IMAGENET, name
        with torch.no_grad():
            torch.testing.assert_close(encoder(IMAGES), features_of_theirs(), rtol=1e-5, atol=1e-5)


def test_torchvisions_names_of_weights_name_their_network() -> None:
    names = models.list_models(module=models)
    assert len(names) > 70
    for name in names:
        weights = models.get_model_weights(name).__name__
        assert named._arch(f"torchvision:{weights}.ANY") == f"torchvision:{name}"


def test_a_file_alone_is_of_the_runs_own_network(own: Pretrained, tmp_path: Path) -> None:
    other = build_encoder(OWN.model, seed=5, size=16)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    encoder, transform = load_named(str(tmp_path / "other.pth"), own)
    assert transform == Transform(size=16, mean=own.mean, std=own.std)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in other.state_dict().items())
    with pytest.raises(BadInput, match="does not fit the network: of another shape: conv1"):
        load_named(f"resnet18={tmp_path / 'other.pth'}", own)


def test_another_run_has_its_own_images(own: Pretrained, tmp_path: Path) -> None:
    export_encoder(build_encoder(TINY.model, seed=1, size=16), TINY, str(tmp_path / "a=b"))
    _, transform = load_named(str(tmp_path / "a=b"), own)
    assert transform == Transform(size=16, mean=TINY.data.mean, std=TINY.data.std)
