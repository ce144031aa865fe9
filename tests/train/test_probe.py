"""The probe: softmax classifiers trained as torch would, exact as all else, and no bit of the method's training."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chaos import assert_bitwise, assert_same_mathematics, final
from gloo import run_workers
from simclr_ray.config import BadInput, Config, EvaluateConfig
from simclr_ray.data.dataset import UNLABELLED, Dataset
from simclr_ray.data.order import order_of
from simclr_ray.evaluate.during import check_during
from simclr_ray.model.encoder import Encoder
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.check import objective_of
from simclr_ray.train.probe import AVERAGED_IMAGES, MOMENTUM, RATES, Probe, probe_of
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import forward_of, training_step
from simclr_ray.train.worker import LocalWorker
from small_runs import TINY, Killed, attempt, corrupted, local_blocks, synthetic_dataset, weights, with_method
from survivors import Loss, survive

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = TINY.with_overrides({"train.epochs": 1, "optim.lr_per_256": 0.1, "logging.every_steps": 2})
PROBED = PLAIN.with_overrides({"evaluate.probe": True, "evaluate.probe_classes": 10})
IN_FLOAT64 = PROBED.with_overrides({"train.precision": "float64"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four steps of 48 images, a quarter of them without a label."""
    folder = tmp_path_factory.mktemp("data")
    return corrupted(synthetic_dataset(folder / "whole", 200), folder / "d", unlabelled=set(range(0, 200, 4)))


class Identity(Encoder):
    feature_dim = 5

    def forward(self, images: Tensor) -> Tensor:
        return images


def random_steps(steps: int, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Features of two views of each row, and the rows' labels of four classes, some without one."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(steps, 2 * rows, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(UNLABELLED, 4, (steps, rows), generator=generator)
    return list(zip(features, labels, strict=True))


def of_torch(rate: float, steps: list[tuple[Tensor, Tensor]], global_batch: int) -> tuple[Tensor, float, float]:
    """By torch's modules: weight and bias, and the moving averages of accuracy and loss."""
    layer = torch.nn.Linear(5, 4).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), rate * global_batch / 256, MOMENTUM, nesterov=True)
    decay, right, losses, count = math.exp(-global_batch / AVERAGED_IMAGES), 0.0, 0.0, 0.0
    for h, labels in steps:
        logits, y = layer(h), labels.repeat(2)
        loss = F.cross_entropy(logits, y, ignore_index=UNLABELLED)
        hits, labelled = int((logits.argmax(dim=1) == y).sum()), int((y != UNLABELLED).sum())
        right, losses = decay * right + hits, decay * losses + labelled * float(loss.detach())
        count = decay * count + labelled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    both = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    return both, 100 * right / count, losses / count


def test_it_is_torchs_classifier_at_each_rate_without_the_unlabelled_rows() -> None:
    steps = random_steps(steps=12, rows=32)
    probe = Probe(Identity(), 4, 32).double()
    assert probe.measures() == {}
    for h, labels in steps:
        probe.train_on([h], [labels])
    expected = [of_torch(rate, steps, 32) for rate in RATES]
    for weight, (reference, _, _) in zip(probe.weight, expected, strict=True):
        torch.testing.assert_close(weight, reference, rtol=1e-10, atol=1e-12)
    _, top1, loss = max(expected, key=lambda each: each[1])
    assert probe.measures() == pytest.approx({"probe_top1": top1, "probe_loss": loss}, rel=1e-10)


def test_without_a_single_label_it_measures_nothing() -> None:
    probe = Probe(Identity(), 4, 32)
    probe.train_on([torch.randn(8, 5)], [torch.full((4,), UNLABELLED)])
    assert probe.measures() == {}
    assert not probe.weight.any()


def trained(config: Config, dataset: Dataset, folder: Path) -> dict[str, Tensor]:
    return weights(attempt(config, dataset, folder))


def of_all_pass_sizes(dataset: Dataset, folder: Path) -> list[dict[str, Tensor]]:
    found = []
    for pass_size in (48, 24):
        config = IN_FLOAT64.with_overrides({"train.pass_size": pass_size})
        found.append(trained(config, dataset, folder / str(pass_size)))
    return found


def test_workers_equal_one_process(dataset: Dataset, tmp_path: Path) -> None:
    """Passes of 3 slices, for 2 workers: these hold different numbers of rows."""
    alone = of_all_pass_sizes(dataset, tmp_path / "alone")
    for results in run_workers(2, of_all_pass_sizes, dataset, tmp_path / "together"):
        for got, expected in zip(results, alone, strict=True):
            assert "probe.weight" in expected
            for name, value in expected.items():
                torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)
    rows = [read_rows(open_location(str(tmp_path / where / "24")) / "metrics.jsonl") for where in ("alone", "together")]
    for one, other in zip(*rows, strict=True):
        assert other["probe_top1"] == pytest.approx(one["probe_top1"], rel=1e-9)
        assert other["probe_loss"] == pytest.approx(one["probe_loss"], rel=1e-9)


@pytest.mark.parametrize("variant", ["simclr", "moco", "dino_multi_crop"])
def test_passes_equal_one_graph(variant: str, dataset: Dataset, tmp_path: Path) -> None:
    """One step in two passes, against the gradient of a classifier of what the encoder says of each pass."""
    config = with_method(IN_FLOAT64, variant)
    config = config.with_overrides({"train.pass_size": 24})
    got = probe_of(attempt(config.with_overrides({"saving.stop_after_epochs": 1 / 4}), dataset, tmp_path).model)
    model, order = initial_state(config, CPU).model, order_of(config, dataset)
    block = next(local_blocks(config, dataset, order.worker_positions(0, 1, 0, 1), slices=6))
    h, y = [], []
    forward = forward_of(model, config.data.mean, config.data.std, "float64", CPU, compiled=False)
    for rows in (slice(0, 24), slice(24, 48)):
        views, labels = torch.from_numpy(block["views"][rows]), torch.from_numpy(block["labels"][rows])
        seen = []
        handle = model.encoder.register_forward_hook(lambda _, images, features, seen=seen: seen.append(features))
        forward(views.transpose(0, 1).flatten(0, 1))
        handle.remove()
        h += seen
        y += [labels] if variant == "moco" else [labels, labels]  # whose encoder sees the first views alone
    layer = torch.zeros(10, model.encoder.feature_dim, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(F.linear(torch.cat(h).detach(), layer), torch.cat(y), ignore_index=UNLABELLED).backward()
    assert got is not None
    torch.testing.assert_close(got.velocity[0, :, :-1], layer.grad, rtol=1e-9, atol=1e-12)


def both_runs(variants: list[str], dataset: Dataset, folder: Path) -> dict[str, list[dict[str, Tensor]]]:
    found = {}
    for variant in variants:
        runs = [
            trained(with_method(config, variant), dataset, path)
            for config, path in ((PLAIN, folder / variant / "plain"), (PROBED, folder / variant / "probed"))
        ]
        found[variant] = runs
    return found


@pytest.mark.parametrize(
    ("workers", "variants"), [(1, ["simclr", "byol", "supervised", "dino_multi_crop"]), (3, ["simclr", "moco"])]
)
def test_the_method_trains_as_without_it_to_the_bit(
    workers: int, variants: list[str], tmp_path: Path, dataset: Dataset
) -> None:
    whole = synthetic_dataset(tmp_path / "whole", 200)
    for results in run_workers(workers, both_runs, variants, whole, tmp_path):
        for variant, (plain, probed) in results.items():
            assert probed["probe.weight"].any(), variant
            assert plain.keys() == {name for name in probed if not name.startswith("probe.")}
            for name, value in plain.items():
                assert torch.equal(probed[name], value), f"{variant}: {name}"


def killed_then_resumed(config: Config, dataset: Dataset, folder: Path) -> None:
    with pytest.raises(Killed):
        attempt(config, dataset, folder, die_after_step=3)
    attempt(config, dataset, folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_resumed_equals_undisturbed_bitwise(workers: int, dataset: Dataset, tmp_path: Path) -> None:
    config = PROBED.with_overrides({"train.pass_size": 24, "saving.every_steps": 2, "logging.ledger": True})
    run_workers(workers, trained, config, dataset, tmp_path / "whole")
    run_workers(workers, killed_then_resumed, config, dataset, tmp_path / "cut")
    whole, cut = final(tmp_path / "whole"), final(tmp_path / "cut")
    assert_bitwise(cut, whole)
    assert whole["tensors"]["probe.velocity"].any()
    assert all({"probe_top1", "probe_loss"} <= row.keys() for row in whole["metrics"])


def test_survivors_put_it_back_and_give_it_to_others(dataset: Dataset, tmp_path: Path) -> None:
    config = IN_FLOAT64.with_overrides(
        {"train.global_batch": 96, "train.epochs": 4, "logging.ledger": True, "saving.every_steps": 1000}
    )
    assert set(survive(config, dataset, tmp_path / "alone", 1, []).values()) == {0}
    losses = [Loss(step=2, ranks=(2,)), Loss(step=5, ranks=(0,), others=1)]
    codes = survive(config, dataset, tmp_path / "run", 3, losses)
    assert sorted(codes.values()) == [-9, -9, 0, 0]
    got, expected = final(tmp_path / "run"), final(tmp_path / "alone")
    assert_same_mathematics(got, expected)
    for row, other in zip(got["metrics"], expected["metrics"], strict=True):
        assert row["probe_loss"] == pytest.approx(other["probe_loss"], rel=1e-8)


def compiled_and_plain() -> list[Tensor]:
    """The probe's gradient after a step in two passes, whose graphs must not break."""
    found = []
    for compiled in (False, True):
        state = initial_state(IN_FLOAT64, CPU)
        probe = probe_of(state.model)
        assert probe is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
            forward = forward_of(state.model, MEAN, STD, "float64", CPU, compiled=compiled)
        views = torch.randint(0, 256, (16, 2, 8, 8, 3), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
        seen: list[Tensor] = []
        watched = probe.watching(forward, seen)
        training_step(state.model, watched, state.optimizer, views, passes=2, rows_per_worker=[8])
        probe.train_on(seen[-2:], (torch.arange(16) % 10).chunk(2))
        found.append(probe.velocity.clone())
    return found


def test_it_compiles_with_the_encoder() -> None:
    ((plain, compiled),) = run_workers(1, compiled_and_plain)
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-9)
    assert plain.any()


def test_a_check_may_go_by_it(dataset: Dataset, tmp_path: Path) -> None:
    """It reads no image, and its rows alone have the objective of a sweep."""
    config = PROBED.with_overrides({"train.epochs": 2, "evaluate.method": "probe", "evaluate.every_epochs": 1})
    assert objective_of(config) == "probe_check"
    run, check = open_location(str(tmp_path)), check_during(config, dataset, None, CPU, 1)
    run_attempt(config, dataset, run, LocalWorker(CPU), lambda p: local_blocks(config, dataset, p), evaluate=check)
    rows = {row["step"]: row for row in read_rows(run / "metrics.jsonl")}
    found = {step: row["probe_check"] for step, row in rows.items() if "probe_check" in row}
    assert found == {step: round(rows[step]["probe_top1"], 3) for step in (4, 8)}
    assert len(rows) == 4
    with pytest.raises(BadInput, match="set evaluate.probe too"):
        EvaluateConfig(method="probe")
