"""Fine-tuning from the projection head: its layers are those that were trained with the encoder, or there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simclr_ray.config import BadInput, Config
from simclr_ray.export.encoder import export_encoder
from simclr_ray.export.published import initial_of
from simclr_ray.methods.build import build_method
from simclr_ray.methods.method import Method
from simclr_ray.methods.supervised import Supervised
from simclr_ray.model.initial import read_initial
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import BEST, INITIAL
from simclr_ray.train import checkpoint
from simclr_ray.train.state import initial_state, snapshot
from small_runs import TINY

BYOL = TINY.with_overrides({"model.head_layers": 3, "method.name": "byol"})
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def saved(config: Config, folder: Path) -> Method:
    """A run in `folder` that has ended: a checkpoint and the encoder; its model in eval mode, with statistics."""
    state = initial_state(config, torch.device("cpu"))
    state.model.train()(IMAGES)
    state.step = 7
    checkpoint.write(open_location(str(folder)), snapshot(state))
    export_encoder(state.model.encoder, config, str(folder))
    return state.model.eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Method]:
    """A run and its model; its best check was at another step than the checkpoint's."""
    run = tmp_path_factory.mktemp("run")
    model = saved(BYOL, run)
    other = build_method(BYOL.model, BYOL.method, seed=9, size=16)
    export_encoder(other.encoder, BYOL, str(run), BEST)
    return str(run), model


def finetuning(run: str, from_head: int, **changes: object) -> Config:
    settings = {"method.name": "supervised", "method.classes": 4, "method.from_head": from_head, "model.init": run}
    return BYOL.with_overrides(settings | {key.replace("__", "."): value for key, value in changes.items()})


def started(config: Config, folder: Path) -> Supervised:
    """The model at step 0 of the run that `config` describes, in eval mode."""
    content, sha256 = initial_of(config)
    (folder / INITIAL).write_bytes(content)
    initial = read_initial(open_location(str(folder)), sha256)
    model = build_method(config.model, config.method, seed=5, size=16, initial=initial).eval()
    assert isinstance(model, Supervised)
    return model


@pytest.mark.parametrize("layers", [1, 2])
def test_the_classifier_sees_what_the_trained_layers_make_of_the_features(
    trained: tuple[str, Method], layers: int, tmp_path: Path
) -> None:
    run, model = trained
    found = started(finetuning(run, layers), tmp_path)
    head = model.get_submodule("head")
    with torch.no_grad():
        h = model.encoder(IMAGES)
        expected = h
        for layer in list(head.children())[: 3 * layers]:  # dense, BatchNorm with its statistics, ReLU
            expected = layer(expected)
        assert expected.min() == 0
        torch.testing.assert_close(found(IMAGES), found.classifier(expected))
        assert torch.equal(found.classify(h), found.classifier(expected))


def test_without_layers_it_is_as_it_was(trained: tuple[str, Method], tmp_path: Path) -> None:
    run, model = trained
    found = started(finetuning(run, 0), tmp_path)
    assert not list(found.head.parameters())
    with torch.no_grad():
        torch.testing.assert_close(found(IMAGES), found.classifier(model.encoder(IMAGES)))


def test_a_head_that_is_not_there_is_said_to_be_missing(trained: tuple[str, Method], tmp_path: Path) -> None:
    run, model = trained
    alone = export_encoder(model.encoder, BYOL, str(tmp_path)).uri
    for source in (f"{run}/{BEST}", alone):
        with pytest.raises(BadInput, match="no checkpoint beside .* has its weights, and the projection head"):
            initial_of(finetuning(source, 1))
    with pytest.raises(BadInput, match="method.from_head 3: this projection head has 2 layers before its last"):
        initial_of(finetuning(run, 3))
    with pytest.raises(BadInput, match="was trained with model.head_hidden None: set it to that"):
        initial_of(finetuning(run, 1, model__head_hidden=64))


def test_a_run_without_a_head_has_none_to_go_on_from(tmp_path: Path) -> None:
    config = BYOL.with_overrides({"method.name": "supervised", "method.classes": 10})
    saved(config, tmp_path)
    with pytest.raises(BadInput, match="was trained by supervised, without a projection head"):
        initial_of(finetuning(str(tmp_path), 1))


def test_weights_that_never_had_a_head_get_a_drawn_one(trained: tuple[str, Method], tmp_path: Path) -> None:
    _, model = trained
    torch.save(model.encoder.state_dict(), tmp_path / "published.pth")
    config = finetuning(str(tmp_path / "published.pth"), 1)
    found, drawn = started(config, tmp_path), build_method(config.model, config.method, seed=5, size=16)
    assert torch.equal(found.head[0].weight, drawn.get_parameter("head.0.weight"))
    assert torch.equal(found.encoder.state_dict()["conv1.weight"], model.encoder.state_dict()["conv1.weight"])
