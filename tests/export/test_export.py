"""The exported encoder equals the trained one, loads from a disk and an object store, and is never unpickled."""

import json
import subprocess
import sys

import pytest
import torch
from pyarrow import fs
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision import models

import simclr_ray
import tiny_networks
from simclr_ray.config import AugmentConfig, BadInput, Config, DataConfig, ModelConfig
from simclr_ray.export.encoder import export_encoder, load_encoder, load_pretrained, loading_lines
from simclr_ray.methods.build import build_encoder
from simclr_ray.storage.location import Location, open_location

SMALL = Config(
    model=ModelConfig(arch="resnet18", width=0.125, stem="cifar"),
    augment=AugmentConfig(size=32),
    data=DataConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)),
)


def trained(config: Config):
    """An encoder that differs from a fresh one everywhere, buffers too."""
    encoder = build_encoder(config.model, seed=1, size=32)
    for tensor in encoder.state_dict().values():
        tensor.add_(1) if tensor.dtype == torch.int64 else tensor.add_(0.1)
    return encoder


@pytest.mark.parametrize("where", ["folder", "file", "uri"])
def test_load_gives_back_the_encoder(tmp_path, where):
    encoder = trained(SMALL)
    location = export_encoder(encoder, SMALL, str(tmp_path / "run"))
    assert location.local == tmp_path / "run" / "encoder.safetensors"
    path = {"folder": tmp_path / "run", "file": location.path, "uri": f"file://{tmp_path}/run"}[where]
    loaded = simclr_ray.load(str(path))
    assert not loaded.training
    assert loaded.feature_dim == encoder.feature_dim
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), encoder.eval()(images))


def test_an_object_store_serves_as_well(tmp_path):
    (tmp_path / "run").mkdir()
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())  # not LocalFileSystem: no path of this machine
    run, encoder = Location("s3://bucket/run", store, "run"), trained(SMALL)
    assert str(export_encoder(encoder, SMALL, run)) == "s3://bucket/run/encoder.safetensors"
    assert torch.equal(load_encoder(run).conv1.weight, encoder.conv1.weight)
    with pytest.raises(BadInput, match="s3://bucket/run/other has no"):
        load_encoder(run / "other")


def test_the_file_says_what_it_needs(tmp_path):
    export_encoder(trained(SMALL).double(), SMALL, open_location(str(tmp_path)))
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["arch"], metadata["width"], metadata["stem"], metadata["size"]) == (
        "resnet18",
        "0.125",
        "cifar",
        "32",
    )
    assert json.loads(metadata["mean"]) == [0.5, 0.4, 0.3]
    pretrained = load_pretrained(str(tmp_path))
    assert pretrained.config == SMALL
    assert (pretrained.size, pretrained.mean, pretrained.std) == (32, SMALL.data.mean, SMALL.data.std)
    assert pretrained.encoder.conv1.weight.dtype == torch.float64


def test_equal_weights_and_configs_give_equal_bytes(tmp_path):
    encoder = trained(SMALL)
    files = [export_encoder(encoder, SMALL, str(tmp_path / str(i))).read_bytes() for i in range(5)]
    assert files == files[:1] * 5
    assert int.from_bytes(files[0][:8], "little") % 8 == 0
    weights = load_file(tmp_path / "0" / "encoder.safetensors")
    assert weights.keys() == encoder.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in encoder.state_dict().items())


def test_the_lines_that_load_it_do(tmp_path):
    config = Config(model=ModelConfig(arch="resnet18"))
    encoder = trained(config).to(memory_format=torch.channels_last)
    location = export_encoder(encoder, config, str(tmp_path))
    found: dict = {}
    exec(loading_lines(location, config), found)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.eval()(images)
        torch.testing.assert_close(found["encoder"](images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["model"](images), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(found["model"], models.ResNet)


@pytest.mark.parametrize("arch", [f"torchvision:{tiny_networks.VIT}", "torchvision:efficientnet_b0", "timm:test_vit"])
def test_a_librarys_network_loads_with_the_library_alone(arch, tmp_path):
    """Of the views' size, where the network has one."""
    config = Config(model=ModelConfig(arch=arch), augment=AugmentConfig(size=32))
    encoder = trained(config).eval()
    found: dict = {}
    exec(loading_lines(export_encoder(encoder, config, str(tmp_path)), config), found)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(images)
        assert torch.equal(found["encoder"](images), expected)
        torch.testing.assert_close(found["model"](images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "stem"), [(2, "imagenet"), (1, "cifar")])
def test_no_lines_for_torchvision_where_it_has_no_such_network(width, stem):
    config = Config(model=ModelConfig(width=width, stem=stem))
    assert "torchvision" not in loading_lines(open_location("x.safetensors"), config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "has no encoder.safetensors"),
        ("missing.safetensors", None, "there is no file"),
        ("weights.pth", b"\x80\x04pickled", "has no encoder.safetensors"),
        ("torn.safetensors", b"\x80\x04torn", "is no safetensors file"),
        ("foreign.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "was not written by"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_bad_input_of_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        simclr_ray.load(str(path))
    assert "\n" not in str(caught.value)


def test_importing_the_package_imports_no_torch():
    code = "import simclr_ray, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
