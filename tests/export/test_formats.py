"""An exported encoder gives the same features in torchvision, timm, ONNX Runtime and torch.export."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import simclr_ray
from simclr_ray.config import AugmentConfig, BadInput, Config, DataConfig, ModelConfig
from simclr_ray.data.augment.center import center_view, resized_side
from simclr_ray.data.prepare.synthetic import draw
from simclr_ray.evaluate.features import encode
from simclr_ray.evaluate.results import append_result
from simclr_ray.export.encoder import export_encoder
from simclr_ray.export.export import export
from simclr_ray.export.formats import FORMATS
from simclr_ray.export.transform import Transform
from simclr_ray.methods.build import build_encoder
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import BEST, ENCODER, METRICS
from tiny_networks import VIT

DATA = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
NETWORKS = {
    "resnet18": (ModelConfig(arch="resnet18"), 64),
    "resnet50": (ModelConfig(arch="resnet50"), 64),
    "narrow": (ModelConfig(arch="resnet18", width=0.125, stem="cifar"), 32),
    "torchvision's resnet18": (ModelConfig(arch="torchvision:resnet18"), 64),
    "torchvision ViT": (ModelConfig(arch=f"torchvision:{VIT}"), 32),
    "timm ViT": (ModelConfig(arch="timm:vit_tiny_patch16_224"), 96),
}
BY_LIBRARY = {
    "torchvision": ("resnet18", "resnet50", "torchvision ViT"),
    "timm": ("resnet18", "resnet50", "torchvision's resnet18", "timm ViT"),
}
ANYWHERE = [name for name in NETWORKS if name != "torchvision's resnet18"]
CASES = [
    (form, name) for form in FORMATS for name in BY_LIBRARY.get(form, ANYWHERE) if (form, name) != ("onnx", "resnet50")
] + [pytest.param("onnx", "resnet50", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run folder for each network, whose statistics are not the initial ones."""
    folders = {}
    for name, (model, size) in NETWORKS.items():
        config = Config(model=model, augment=AugmentConfig(size=size), data=DATA)
        encoder = build_encoder(model, seed=1, size=size)
        generator = torch.Generator().manual_seed(0)
        for key, value in encoder.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
        folder = tmp_path_factory.mktemp("runs") / "run"
        export_encoder(encoder, config, str(folder))
        folders[name] = str(folder)
    return folders


def loaded(form: str, lines: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the printed lines load, as a function from images to features."""
    found: dict[str, Any] = {}
    if form == "onnx":
        exec(lines[: lines.index("(features,)")], found)
        return lambda images: torch.from_numpy(found["session"].run(["features"], {"images": images.numpy()})[0])
    exec(lines, found)
    return found["encoder"] if form == "safetensors" else found["model"]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_the_printed_lines_load_the_same_features(form, name, runs: dict[str, str], tmp_path: Path) -> None:
    size = NETWORKS[name][1]
    lines = export(runs[name], str(tmp_path / "out"), form, "export.py")
    module = loaded(form, lines)
    encoder = simclr_ray.load(runs[name])
    for count in (3, 1):
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            torch.testing.assert_close(module(images), encoder(images), atol=1e-4, rtol=1e-4)
    beside_the_card = lines.replace(f"{tmp_path}/out/", "").replace(f"{tmp_path}/", "")
    assert beside_the_card in (tmp_path / "out" / "README.md").read_text()


def test_timm_knows_the_preprocessing(runs: dict[str, str], tmp_path: Path) -> None:
    export(runs["resnet18"], str(tmp_path), "timm", "export.py")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    settings = timm.data.resolve_model_data_config(model)
    assert [*map(tuple, (settings["input_size"], settings["mean"], settings["std"]))] == [
        (3, 64, 64),
        DATA.mean,
        DATA.std,
    ]
    assert (settings["interpolation"], settings["crop_pct"]) == ("bilinear", 1.0)
    assert model.num_features == 512


def test_timm_resizes_as_we_do() -> None:
    for size in range(32, 400):
        ours = Transform(size=size, mean=DATA.mean, std=DATA.std)
        assert math.floor(size / ours.crop_fraction) == resized_side(size), size  # timm.data.transforms_factory


@pytest.mark.parametrize(
    ("form", "name"),
    [("torchvision", "narrow"), ("timm", "narrow"), ("torchvision", "timm ViT"), ("timm", "torchvision ViT")],
)
def test_a_library_without_the_network(form, name, runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{form} has no network .*: use --format .*onnx, torch.export or safetensors"):
        export(runs[name], str(tmp_path / "out"), form, "export.py")


def test_a_folder_that_holds_something(runs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match=r"is not empty \(it holds thesis.tex\)"):
        export(runs["narrow"], str(tmp_path), "safetensors", "export.py")
    with pytest.raises(BadInput, match="has no encoder.safetensors"):
        export(str(tmp_path), str(tmp_path / "out"), "safetensors", "export.py")


def test_onnx_may_not_be_installed(runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simclr_ray.export.formats.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'simclr_ray\[onnx\]'"):
        export(runs["narrow"], str(tmp_path / "out"), "onnx", "export.py")


def test_the_card_says_what_was_measured(runs: dict[str, str], tmp_path: Path) -> None:
    run = open_location(runs["narrow"])
    found = {"pretrained": {"top1": 61.5, "top5": 90.0}, "pixels": {"top1": 20.0, "top5": 60.0}}
    row = {"method": "knn", "test": "photos", "test_rows": 1000, "results": found}
    append_result(run, row | {"results": {"pretrained": {"top1": 1.0, "top5": 2.0}}})
    append_result(run, row)
    append_result(run, row | {"encoder": "best.safetensors", "encoder_sha256": "another", "test": "other"})
    command = "export.py /home/me/runs/a ~/secret/b --of=/home/me/c file:///home/me/d s3://bucket/runs/e f/g"
    command += " '/home/my name/h'"
    export(runs["narrow"], str(tmp_path / "out"), "safetensors", command)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| knn | 100 % | pretrained | 61.50 | 90.00 | photos (1,000 images) |" in card
    assert "| 1.00 |" not in card
    assert "other" not in card, "that was another encoder"
    assert "# resnet18 of width 0.125, pretrained by simclr" in card
    assert "Written by `export.py a b --of=c d s3://bucket/runs/e f/g 'h'`." in card, "no folders of this machine"
    assert str(tmp_path) not in card
    assert "- self-supervised\n- simclr\n" in card
    assert "32 x 32 images in" in card
    assert card.startswith("---\nlicense: unknown\n")
    described = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert (described["centre_crop"], described["mean"]) == (32, list(DATA.mean))


def test_the_transform_shows_what_evaluation_shows(runs: dict[str, str]) -> None:
    encoder, transform = simclr_ray.load_with_transform(runs["narrow"])
    pixels = draw("train", 3)
    view = center_view(pixels, 32)
    expected = encode(encoder, torch.from_numpy(view.copy())[None], DATA.mean, DATA.std)
    for image in (pixels, Image.fromarray(pixels)):
        with torch.no_grad():
            torch.testing.assert_close(encoder(transform(image)[None]), expected, atol=1e-5, rtol=1e-5)
    grey = Image.fromarray(pixels).convert("L")
    assert transform(grey).shape == (3, 32, 32)


def test_the_card_of_the_best_check_is_about_its_step(runs: dict[str, str], tmp_path: Path) -> None:
    config = Config(model=NETWORKS["narrow"][0], augment=AugmentConfig(size=32), data=DATA)
    config = config.with_overrides({"evaluate.every_epochs": 1})
    run = open_location(str(tmp_path / "run"))
    for name in (BEST, ENCODER):
        export_encoder(build_encoder(config.model, seed=1, size=32), config, run, name)
    tops = {8: 30.0, 16: 50.0, 20: 60.0, 24: 50.0, 32: 40.0}  # that of step 20: due to an early stop
    rows = [{"step": step, "epoch": step / 8, "knn_top1": top1} for step, top1 in tops.items()]
    (run / METRICS).write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    for name, steps, epochs in ((BEST, 16, "2 of 100"), (ENCODER, 32, "4 of 100")):
        export((run / name).uri, str(tmp_path / name), "safetensors", "export.py")
        card = (tmp_path / name / "README.md").read_text()
        assert f"| steps | {steps} |" in card
        assert f"| epochs | {epochs} |" in card
