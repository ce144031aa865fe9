"""A warm start: published weights become the encoder's, to the bit, and what does not fit is listed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import models

import tiny_networks
from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.export.encoder import export_encoder
from simclr_ray.export.published import initial_of, published_weights
from simclr_ray.methods.build import build_encoder, build_method
from simclr_ray.model.initial import read_initial
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import INITIAL
from small_runs import TINY, Killed, attempt, synthetic_dataset, weights

RESNET = TINY.with_overrides({"model.width": 1.0, "model.stem": "imagenet", "augment.size": 32})
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def torchvision_file(folder: Path, name: str = "resnet18", **settings: int) -> tuple[Path, torch.nn.Module]:
    """A network of torchvision with random weights and statistics, and the file that torch.save makes of it."""
    torch.manual_seed(7)
    net = models.get_model(name, **settings).train()
    net(torch.randn(4, 3, 32, 32))  # so that BatchNorm's statistics are not those of a new network
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, folder / "net.pth")
    return folder / "net.pth", net.eval()


@pytest.mark.parametrize(("arch", "head"), [("resnet18", "fc"), (f"torchvision:{tiny_networks.VIT}", "heads")])
def test_the_first_features_are_torchvisions(arch: str, head: str, tmp_path: Path) -> None:
    sizes = {"image_size": 32} if head == "heads" else {}
    file, theirs = torchvision_file(tmp_path, arch.rpartition(":")[2], **sizes)
    config = RESNET.with_overrides({"model.arch": arch, "model.init": str(file), "method.name": "byol"})
    content, sha256 = initial_of(config)
    assert initial_of(config) == (content, sha256)
    (tmp_path / INITIAL).write_bytes(content)
    initial = read_initial(open_location(str(tmp_path)), sha256)
    method = build_method(config.model, config.method, seed=5, size=32, initial=initial).eval()
    setattr(theirs, head, torch.nn.Identity())
    with torch.no_grad():
        expected = theirs(IMAGES)
        torch.testing.assert_close(method.encoder(IMAGES), expected, rtol=1e-5, atol=1e-5)
        teacher = method.get_submodule("teacher_encoder")
        torch.testing.assert_close(teacher(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_a_run_is_a_start_for_another_one(tmp_path: Path) -> None:
    encoder = build_encoder(TINY.model, seed=3, size=16)
    export_encoder(encoder, TINY, str(tmp_path))
    config = TINY.with_overrides({"model.init": str(tmp_path)})
    assert published_weights(str(tmp_path)).keys() == encoder.state_dict().keys()
    with pytest.raises(BadInput, match="have sha256"):
        initial_of(config.with_overrides({"model.init_sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.arch": "resnet50"}, "it lacks: layer1.0.conv3.weight.*of another shape: layer1.0.conv1.weight"),
        ({"model.width": 0.5}, r"of another shape: conv1.weight \(64, 3, 7, 7\) instead of \(32, 3, 7, 7\), .* more"),
        ({"model.arch": f"torchvision:{tiny_networks.VIT}"}, "it lacks: class_token.*unknown: conv1.weight"),
    ],
)
def test_weights_of_another_network_are_listed(changes: dict, message: str, tmp_path: Path) -> None:
    file, _ = torchvision_file(tmp_path)
    with pytest.raises(BadInput, match=message):
        initial_of(RESNET.with_overrides(changes | {"model.init": str(file)}))


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("none.pth", None, "cannot be read"),
        ("text.pth", b"no weights", "holds no plain weights"),
        ("text.safetensors", b"no weights", "no safetensors file"),
        ("run", None, "has no encoder.safetensors"),
        ("torchvision:resnet51", None, "torchvision has no weights 'resnet51': did you mean resnet"),
        ("torchvision:ResNet50_Weights.IMAGENET1K_V9", None, "torchvision has no weights"),
        ("timm:resnet51", None, "timm has no weights 'resnet51'"),
    ],
)
def test_a_source_without_weights_is_named(source: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / source).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        published_weights(source if ":" in source else str(tmp_path / source))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data"), 96)


def test_a_run_from_given_weights_resumes_bitwise_and_refuses_others(dataset: Dataset, tmp_path: Path) -> None:
    export_encoder(build_encoder(TINY.model, seed=3, size=16), TINY, str(tmp_path))
    config = TINY.with_overrides({"model.init": str(tmp_path), "saving.every_steps": 2})
    content, sha256 = initial_of(config)
    config = config.with_overrides({"model.init_sha256": sha256})
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / INITIAL).write_bytes(content)
    whole = weights(attempt(config, dataset, tmp_path / "whole"))
    with pytest.raises(Killed):
        attempt(config, dataset, tmp_path / "cut", die_after_step=3)
    resumed = weights(attempt(config, dataset, tmp_path / "cut"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    drawn = weights(attempt(TINY, dataset, tmp_path / "drawn"))
    assert not torch.equal(drawn["encoder.conv1.weight"], whole["encoder.conv1.weight"])
    (tmp_path / "cut" / INITIAL).write_bytes(content + b" ")
    with pytest.raises(BadInput, match="is not the file that the run was started from"):
        attempt(config, dataset, tmp_path / "cut")
    (tmp_path / "cut" / INITIAL).unlink()
    with pytest.raises(BadInput, match="is gone"):
        attempt(config, dataset, tmp_path / "cut")


def test_the_address_of_the_weights_may_change_but_not_the_weights() -> None:
    config = Config().with_overrides({"model.init": "a", "model.init_sha256": "1"})
    from simclr_ray.config import science_changes

    moved = config.with_overrides({"model.init": "b"})
    assert science_changes(config, moved) == {}
    assert list(science_changes(config, moved.with_overrides({"model.init_sha256": "2"}))) == ["model.init_sha256"]
    with pytest.raises(BadInput, match=r"model.init_sha256 needs model.init"):
        Config().with_overrides({"model.init_sha256": "1"})
