"""Every method under the promise: N workers equal one, passes equal one graph, resumed equals undisturbed.

A new method joins these tests with its name in `METHODS`.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.config import METHODS, BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import Order
from simclr_ray.methods.byol import BYOL
from simclr_ray.methods.dino import DINO
from simclr_ray.methods.method import START, Method, Progress
from simclr_ray.methods.momentum import rising
from simclr_ray.model.stochastic_depth import keeping
from simclr_ray.optim.build import set_rate
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import LEDGER, METRICS, read_rows
from simclr_ray.train.batch import Batch
from simclr_ray.train.branches import kept_of
from simclr_ray.train.state import TrainState, initial_state
from simclr_ray.train.step import Forward, forward_of, training_step
from small_runs import QUEUED, TINY, Killed, attempt, synthetic_dataset, weights, with_method
from small_runs import SMALL_BATCH as BATCH

SLICE_ROWS = 4
VARIANTS = [*METHODS, "moco_v3", "swav_multi_crop", "swav_queue_multi_crop", "dino_multi_crop"]
VARIANTS += ["moco_dropping", "dino_multi_crop_dropping"]
CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def small(variant: str) -> Config:
    values = {"train.precision": "float64", "train.global_batch": BATCH, "optim.optimizer": "sgd"}
    return with_method(TINY.with_overrides(values | {"optim.lr_per_256": 0.2, "method.temperature": 0.3}), variant)


def has_local(variant: str) -> bool:
    return "_multi_crop" in variant


def own_rows(pass_size: int, variant: str, step: int = 0) -> tuple[Batch, list[int]]:
    """This worker's rows of the global batch, and how many a pass has on every worker."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randint(0, 256, (BATCH, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    local = torch.randint(0, 256, (BATCH, 3, 4, 4, 3), generator=generator, dtype=torch.uint8)
    order = Order(seed=1, rows=BATCH, slice_rows=SLICE_ROWS, global_batch=BATCH, pass_size=pass_size)
    positions = order.worker_positions(0, 1, collective.rank(), collective.size())
    slices = [order.slice_at(position)[1] for position in positions]
    rows = torch.cat([torch.arange(g * SLICE_ROWS, (g + 1) * SLICE_ROWS) for g in slices])
    own = local[rows] if has_local(variant) else None
    ids, labels = rows.numpy(), rows % 10 if variant == "supervised" else None
    batch = Batch(step, drawn[rows], ids, np.zeros(len(ids), bool), local=own, labels=labels)
    return batch, order.rows_per_pass(collective.size())


def trained(variant: str, pass_size: int, steps: int = 2, **changes: object) -> tuple[TrainState, Tensor]:
    """The state after `steps` steps, and their losses."""
    state = initial_state(small(variant).with_overrides(changes), CPU)
    forward = forward_of(state.model, MEAN, STD, "float64", CPU, compiled=False)
    losses = []
    for step in range(steps):
        batch, rows = own_rows(pass_size, variant, step)
        result = training_step(
            state.model,
            forward,
            state.optimizer,
            batch.views,
            passes=BATCH // pass_size,
            rows_per_worker=rows,
            labels=batch.labels,
            kept=kept_of(state.model, batch, seed=1, epoch=step),
            progress=Progress(step / steps, step / steps, step),
            local=batch.local,
        )
        losses.append(collective.sum_over_workers(result.loss.clone()))
    return state, torch.stack(losses)


def everything() -> dict[str, dict[str, Tensor]]:
    """For each method and pass size: the losses, and all its weights and buffers afterwards."""
    found = {}
    for variant in VARIANTS:
        for pass_size in (BATCH, BATCH // 2):
            state, losses = trained(variant, pass_size, steps=3 if variant in QUEUED else 2)  # a queue is full after 2
            values = {"losses": losses} | state.model.state_dict()
            if "queue" in values:  # the same rows, in another order
                queue = values["queue"]
                values["queue"] = queue.take_along_dim(queue[..., :1].argsort(dim=-2), dim=-2)
            found[f"{variant} in passes of {pass_size}"] = values
    return found


def test_workers_equal_one_process() -> None:
    alone = everything()
    for results in run_workers(3, everything):
        for run, values in alone.items():
            for name, expected in values.items():
                torch.testing.assert_close(
                    results[run][name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=f"{run}: {name}": f"{n}: {m}"
                )


def by_view(model: Method, forward: Forward, views: Tensor, kept: Tensor | None, *, local: bool) -> Tensor:
    """Outputs of the views of one size in two passes, in one graph: all of the first view, all of the second, ..."""
    parts = []
    for number, part in enumerate(views.chunk(2)):
        own = None if kept is None else kept.chunk(2)[number].transpose(0, 1).flatten(0, 1)
        with keeping(model.encoder.stochastic_depth, own):
            parts.append(forward(part.transpose(0, 1).flatten(0, 1), local=local))
    return torch.cat([part.unflatten(0, (views.shape[1], -1)) for part in parts], dim=1).flatten(0, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_equal_autograd_through_the_whole_batch(variant: str) -> None:
    state, _ = trained(variant, BATCH // 2, steps=1)
    whole = initial_state(small(variant), CPU)
    forward = forward_of(whole.model, MEAN, STD, "float64", CPU, compiled=False)
    batch, rows = own_rows(BATCH // 2, variant)
    model = whole.model
    model.start_step(START)
    sizes = [batch.views] if batch.local is None else [batch.views, batch.local]
    kept = kept_of(model, batch, seed=1, epoch=0) or [None] * len(sizes)
    pairs = enumerate(zip(sizes, kept, strict=True))
    outputs = torch.cat([by_view(model, forward, size, own, local=i > 0) for i, (size, own) in pairs])
    rows = [2 * n for n in rows]
    labels = batch.labels
    loss = model.loss(outputs, rows) if labels is None else model.labelled_loss(outputs, labels, rows)
    loss.backward()
    gradients = {name: p.grad for name, p in whole.model.named_parameters() if p.requires_grad}
    assert gradients
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12, msg=name)
        else:
            assert name.startswith(("teacher_", "teacher.")) or (name == "prototypes.weight" and has_local(variant))
            assert parameter.grad is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data"), 128)


def killed_then_resumed(config: Config, dataset: Dataset, folder: Path) -> dict[str, Tensor]:
    with pytest.raises(Killed):
        attempt(config, dataset, folder, die_after_step=3)
    return weights(attempt(config, dataset, folder))


def resumed_and_undisturbed(
    variants: list[str], dataset: Dataset, folder: Path
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    found = {}
    for variant in variants:
        changes = {"saving.every_steps": 2, "train.epochs": 1, "optim.warmup_epochs": 0.5, "train.global_batch": BATCH}
        config = with_method(TINY.with_overrides(changes | {"train.pass_size": BATCH // 2}), variant)
        whole = weights(attempt(config, dataset, folder / variant / "whole"))
        found[variant] = (whole, killed_then_resumed(config, dataset, folder / variant / "cut"))
    return found


@pytest.mark.parametrize(("workers", "variants"), [(1, ["moco", "dino_multi_crop"]), (2, VARIANTS)])
def test_resumed_equals_undisturbed_bitwise(
    workers: int, variants: list[str], dataset: Dataset, tmp_path: Path
) -> None:
    for results in run_workers(workers, resumed_and_undisturbed, variants, dataset, tmp_path):
        assert list(results) == variants
        for variant, (whole, resumed) in results.items():
            assert whole.keys() == resumed.keys()
            for name, value in whole.items():
                assert torch.equal(resumed[name], value), f"{variant}: {name}"


CHANGING = [variant for variant in VARIANTS if variant not in ("swav", "dino")]  # these are there with multi-crop


def in_float64(variant: str) -> Config:
    """Batches of six slices, so that one, two or three workers have as many each and end at the same step."""
    changes = {"saving.every_steps": 1, "train.epochs": 2, "train.global_batch": 48, "logging.every_steps": 1}
    config = TINY.with_overrides(changes | {"train.precision": "float64", "logging.ledger": True})
    return with_method(config, variant)


def some_steps(dataset: Dataset, folder: Path, steps: int | None) -> None:
    """`steps` more steps of every method's run in `folder`, by this group of workers; None: all that are left."""
    for variant in CHANGING:
        with pytest.raises(Killed) if steps else nullcontext():
            attempt(in_float64(variant), dataset, folder / variant, die_after_step=steps)


def test_changing_workers_give_the_same_samples_and_losses(dataset: Dataset, tmp_path: Path) -> None:
    """Of three, then one, then two workers, each group's end a kill, against one that is not disturbed."""
    for workers, steps in ((3, 1), (1, 1), (2, None)):
        run_workers(workers, some_steps, dataset, tmp_path / "changing", steps)
    some_steps(dataset, tmp_path / "whole", None)
    for variant in CHANGING:
        changing, whole = (open_location(str(tmp_path / kind / variant)) for kind in ("changing", "whole"))
        assert read_rows(changing / LEDGER) == read_rows(whole / LEDGER)
        losses = [[row["loss"] for row in read_rows(run / METRICS)] for run in (changing, whole)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-8), variant
        assert len(losses[1]) == 4


def test_a_teacher_is_the_moving_average_of_the_student() -> None:
    start = initial_state(small("byol"), CPU).model
    state, _ = trained("byol", BATCH, steps=1)
    assert isinstance(state.model, BYOL)
    for name, teacher in state.model.teacher_encoder.named_parameters():
        before, after = start.get_parameter(f"encoder.{name}"), state.model.get_parameter(f"encoder.{name}")
        torch.testing.assert_close(teacher, 0.996 * before + 0.004 * after)
    assert [round(rising(0.9, progress), 4) for progress in (0.0, 0.5, 1.0)] == [0.9, 0.95, 1.0]


@pytest.mark.parametrize("variant", ["byol", "moco", "moco_v3", "dino"])
def test_a_teacher_without_a_head_is_updated_too(variant: str) -> None:
    change = {"model.head": "none"}
    start = initial_state(small(variant).with_overrides(change), CPU).model
    state, _ = trained(variant, BATCH, steps=1, **change)
    name = "teacher_encoder.conv1.weight"
    assert not torch.equal(start.get_parameter(name), state.model.get_parameter(name))


def test_the_queue_holds_the_newest_keys() -> None:
    """Three batches of 32 keys through a queue of 64: the first batch's are gone, and none is left from the start."""
    state, _ = trained("moco", BATCH, steps=3)
    start = initial_state(small("moco"), CPU).model.get_buffer("queue")
    queue = state.model.get_buffer("queue")
    assert int(state.model.get_buffer("position")) == BATCH
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(2 * BATCH, dtype=torch.float64))
    assert not any(torch.isclose(queue, key).all(dim=1).any() for key in start)


@pytest.mark.parametrize("name", ["moco", "swav"])
def test_a_queue_is_of_whole_batches(name: str) -> None:
    with pytest.raises(BadInput, match=r"method.queue 40 is no multiple of train.global_batch 32: set it to 512"):
        small(name).with_overrides({"method.queue": 40})


def test_the_rate_of_simsiams_predictor_stays_at_its_peak() -> None:
    state = initial_state(small("simsiam"), CPU)
    set_rate(state.optimizer, 0.001)
    rates = {id(p): group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
    for name, parameter in state.model.named_parameters():
        assert rates[id(parameter)] == (0.2 * BATCH / 256 if name.startswith("predictor.") else 0.001), name


def test_another_method_under_the_same_name_is_refused_and_its_config_is_read_again(tmp_path: Path) -> None:
    config = TINY.with_overrides({"method.name": "byol", "method.momentum": 0.9})
    (open_location(str(tmp_path)) / "config.json").write_bytes(config.to_json().encode())
    assert Config.from_json((tmp_path / "config.json").read_text()) == config
    with pytest.raises(BadInput, match="no such setting: method.temperature"):
        config.with_overrides({"method.temperature": 0.2})
    with pytest.raises(BadInput, match="no method is called 'byool'.*barlow_twins"):
        config.with_overrides({"method.name": "byool"})


def test_schedules_follow_the_epoch() -> None:
    """The prototypes are not trained at first, and the teacher of DINO becomes less sharp in a straight line."""
    values = {"method.prototypes": 12, "method.frozen_epochs": 1, "method.warmup_teacher_epochs": 4}
    config = small("dino").with_overrides(values | {"method.teacher_temperature": 0.08})
    model = initial_state(config, CPU).model
    assert isinstance(model, DINO)
    found = {}
    for epoch in (0.0, 0.5, 1.0, 4.0, 9.0):
        model.start_step(Progress(epoch / 10, epoch, int(2 * epoch)))
        found[epoch] = (round(model.teacher_temperature, 6), model.prototypes.weight.requires_grad)
    assert found == {0.0: (0.04, False), 0.5: (0.045, False), 1.0: (0.05, True), 4.0: (0.08, True), 9.0: (0.08, True)}


def test_local_views_are_for_methods_that_use_them() -> None:
    with pytest.raises(BadInput, match="augment.local_views are for the methods swav and dino, not for byol"):
        small("byol").with_overrides({"augment.local_views": 2, "augment.local_size": 12})
