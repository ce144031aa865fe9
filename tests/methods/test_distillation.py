"""Distillation: the teacher is the classifier that another run trained, to the bit, and stays it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.config import BadInput, Config, as_resolved, science_changes
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.during import check_during
from simclr_ray.evaluate.labels import require_teachers_classes
from simclr_ray.export.encoder import export_encoder
from simclr_ray.export.published import initial_of
from simclr_ray.export.teacher import teacher_of
from simclr_ray.methods.build import build_method
from simclr_ray.methods.distillation import Distillation, distillation_loss
from simclr_ray.methods.teacher import read_teacher, teacher_in
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.model.initial import read_initial
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import INITIAL, TEACHER
from simclr_ray.train.check import objective_of
from simclr_ray.train.step import forward_of, training_step
from small_runs import TINY, Killed, attempt, synthetic_dataset, weights

CPU = torch.device("cpu")
# Wider than the student, for larger views, and on a layer of its head.
TAUGHT = TINY.with_overrides(
    {
        "method.name": "supervised",
        "method.classes": 10,
        "method.from_head": 1,
        "model.width": 0.125,
        "augment.size": 24,
        "train.epochs": 1,
        "train.precision": "float64",
    }
)
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data"), 96)


@pytest.fixture(scope="module")
def taught(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.nn.Module]:
    """A finished supervised run, and its model in eval mode."""
    run = tmp_path_factory.mktemp("taught")
    state = attempt(TAUGHT, dataset, run)
    export_encoder(state.model.encoder, TAUGHT, str(run))
    return str(run), state.model.eval()


def distilling(teacher: str | None, **changes: object) -> Config:
    settings = {"method.name": "distillation", "method.teacher": teacher, "train.precision": "float64"}
    return TINY.with_overrides(settings | {key.replace("__", "."): value for key, value in changes.items()})


def started(config: Config, folder: Path) -> Config:
    """The run folder as the first start leaves it, and its config."""
    folder.mkdir(exist_ok=True)
    content, resolved = teacher_of(config)
    (folder / TEACHER).write_bytes(content)
    return config.with_overrides(resolved)


def model_of(config: Config, folder: Path) -> Distillation:
    teacher = read_teacher(open_location(str(folder)), config.method)
    model = build_method(config.model, config.method, seed=5, size=config.augment.size, teacher=teacher).double()
    assert isinstance(model, Distillation)
    return model


def test_the_teacher_is_the_runs_classifier_in_eval_mode_and_no_step_changes_it(
    taught: tuple[str, torch.nn.Module], tmp_path: Path
) -> None:
    run, expected = taught
    config = started(distilling(run), tmp_path)
    model = model_of(config, tmp_path).train()
    assert config.flat()["method.classes"] == 10
    assert not any(layer.training for layer in model.teacher.modules() if isinstance(layer, BatchNorm))
    assert all(layer.training for layer in model.encoder.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    forward = forward_of(model, config.data.mean, config.data.std, "float64", CPU, compiled=False)
    views = torch.randint(0, 256, (8, 2, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for passes in (1, 2):
        training_step(model, forward, optimizer, views, passes=passes, rows_per_worker=[8 // passes])
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked") or name.startswith("teacher."):
            assert value.equal(before[name]) == name.startswith("teacher."), name
    with torch.no_grad():
        logits, target = model(IMAGES).chunk(2, dim=1)
        # A teacher is built in float32; this one's weights are of a run in float64.
        torch.testing.assert_close(target, expected(IMAGES), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits, target, atol=1e-2)


def test_the_students_start_does_not_depend_on_its_teacher(taught: tuple[str, torch.nn.Module], tmp_path: Path) -> None:
    config = started(distilling(taught[0]), tmp_path)
    model, drawn = model_of(config, tmp_path), build_method(config.model, config.method, seed=5, size=16).double()
    for name, value in drawn.state_dict().items():
        if not name.startswith("teacher."):
            assert model.state_dict()[name].equal(value), name


def shares(config: Config, folder: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of one step, of 3, 2 and 3 of 8 images, or of all."""
    rows = [3, 2, 3] if collective.size() == 3 else [8]
    first = sum(rows[: collective.rank()])
    views = torch.randint(0, 256, (8, 2, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    model = model_of(config, folder)
    forward = forward_of(model, config.data.mean, config.data.std, "float64", CPU, compiled=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    own = views[first : first + rows[collective.rank()]]
    result = training_step(model, forward, optimizer, own, passes=1, rows_per_worker=rows)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return collective.sum_over_workers(result.loss.clone()), gradients


def test_three_workers_with_unequal_rows_equal_one(taught: tuple[str, torch.nn.Module], tmp_path: Path) -> None:
    config = started(distilling(taught[0]), tmp_path)
    loss, gradients = shares(config, tmp_path)
    assert gradients
    assert not any(name.startswith("teacher.") for name in gradients)
    for found, theirs in run_workers(3, shares, config, tmp_path):
        torch.testing.assert_close((found, theirs), (loss, gradients), rtol=1e-9, atol=1e-11)


def test_a_run_with_a_teacher_resumes_bitwise_and_refuses_others(
    taught: tuple[str, torch.nn.Module], dataset: Dataset, tmp_path: Path
) -> None:
    config = distilling(taught[0], saving__every_steps=2, train__precision="float32")
    config = started(config, tmp_path / "whole")
    started(config, tmp_path / "cut")
    whole = weights(attempt(config, dataset, tmp_path / "whole"))
    with pytest.raises(Killed):
        attempt(config, dataset, tmp_path / "cut", die_after_step=3)
    resumed = weights(attempt(config, dataset, tmp_path / "cut"))
    assert whole.keys() == resumed.keys()
    assert all(resumed[name].equal(value) for name, value in whole.items())
    for name, value in teacher_in((tmp_path / "cut" / TEACHER).read_bytes()).weights.items():
        trained = whole[f"teacher.{name}"]
        assert trained.equal(value.to(trained.dtype)), name
    (tmp_path / "cut" / TEACHER).write_bytes((tmp_path / "cut" / TEACHER).read_bytes() + b" ")
    with pytest.raises(BadInput, match="is not the method.teacher that the run was started with"):
        attempt(config, dataset, tmp_path / "cut")
    (tmp_path / "cut" / TEACHER).unlink()
    with pytest.raises(BadInput, match="the run's method.teacher, is gone"):
        attempt(config, dataset, tmp_path / "cut")


def test_the_address_of_the_teacher_may_change_but_not_the_teacher(taught: tuple[str, torch.nn.Module]) -> None:
    first = distilling(taught[0]).with_overrides(teacher_of(distilling(taught[0]))[1])
    assert as_resolved(distilling(taught[0]), first) == first
    moved = as_resolved(distilling("elsewhere"), first)
    assert moved.flat()["method.teacher_sha256"] is None  # to be read again
    moved = moved.with_overrides({"method.teacher_sha256": first.flat()["method.teacher_sha256"]})
    assert science_changes(first, moved) == {}
    other = moved.with_overrides({"method.teacher_sha256": "0" * 64})
    assert list(science_changes(first, other)) == ["method.teacher_sha256"]


def test_a_teachers_file_and_a_student_are_teachers_too(
    taught: tuple[str, torch.nn.Module], dataset: Dataset, tmp_path: Path
) -> None:
    config = started(distilling(taught[0], train__epochs=1), tmp_path)
    assert teacher_of(distilling(str(tmp_path / TEACHER)))[0] == (tmp_path / TEACHER).read_bytes()
    student = attempt(config, dataset, tmp_path).model.eval()
    export_encoder(student.encoder, config, str(tmp_path))
    again = started(distilling(str(tmp_path)), tmp_path / "again")
    with torch.no_grad():
        found = model_of(again, tmp_path / "again")(IMAGES).chunk(2, dim=1)[1]
        torch.testing.assert_close(found, student(IMAGES).chunk(2, dim=1)[0], rtol=1e-5, atol=1e-6)


def test_a_student_goes_on_from_the_head_of_a_pretrained_run(
    taught: tuple[str, torch.nn.Module], dataset: Dataset, tmp_path: Path
) -> None:
    state = attempt(TINY.with_overrides({"train.epochs": 1}), dataset, tmp_path)
    export_encoder(state.model.encoder, TINY, str(tmp_path))
    config = distilling(taught[0], method__from_head=1, model__init=str(tmp_path), method__classes=10)
    content, sha256 = initial_of(config)
    (tmp_path / INITIAL).write_bytes(content)
    initial = read_initial(open_location(str(tmp_path)), sha256)
    model = build_method(config.model, config.method, seed=5, size=16, initial=initial)
    assert model.get_parameter("head.0.weight").equal(state.model.get_parameter("head.0.weight"))
    assert model.state_dict()["encoder.conv1.weight"].equal(state.model.state_dict()["encoder.conv1.weight"])


@pytest.mark.parametrize(
    ("teacher", "changes", "message"),
    [
        (None, {}, "method distillation needs a teacher: .* by --method.teacher"),
        ("nowhere", {}, "method.teacher: .*nowhere has no encoder.safetensors"),
        ("broken.safetensors", {}, "method.teacher: .*broken.safetensors is no safetensors file"),
        ("unsupervised", {}, "method.teacher: .* was trained by simclr, without a classifier: fine-tune it"),
        ("alone.safetensors", {}, "method.teacher: no checkpoint beside .* and the classifier is in checkpoints alone"),
        ("taught", {"data__mean": (0.5, 0.5, 0.5)}, "method.teacher: it was trained with data.mean .* set it to that"),
        ("taught", {"method__classes": 7}, "method.classes is 7, that of method.teacher .* is 10: leave it out"),
        ("taught", {"method__teacher_sha256": "0" * 64}, "method.teacher_sha256 is '0000"),
    ],
)
def test_what_is_no_teacher_is_said_in_a_line(
    teacher: str | None, changes: dict, message: str, taught: tuple[str, torch.nn.Module], tmp_path: Path
) -> None:
    run, model = taught
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    export_encoder(model.encoder, TAUGHT, str(tmp_path), "alone.safetensors")
    export_encoder(model.encoder, TAUGHT.with_overrides({"method.name": "simclr"}), str(tmp_path / "unsupervised"))
    source = run if teacher == "taught" else teacher and str(tmp_path / teacher)
    with pytest.raises(BadInput, match=message) as caught:
        teacher_of(distilling(source, **changes))
    assert "\n" not in str(caught.value)


def test_a_perfect_student_has_the_entropy_of_its_teacher_and_no_gradient() -> None:
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = distillation_loss(student, teacher.requires_grad_(), 0.5)
    loss.backward()
    p = (teacher / 0.5).softmax(dim=1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(dim=1).mean())
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15
    assert teacher.grad is None


def test_the_check_scores_the_students_own_classifier(
    taught: tuple[str, torch.nn.Module], dataset: Dataset, tmp_path: Path
) -> None:
    config = started(distilling(taught[0], evaluate__every_epochs=1), tmp_path)
    found = check_during(config, dataset, dataset, CPU, 1)(model_of(config, tmp_path), 1, lambda: None)
    assert {"top1", "top5", "knn_top1"} <= found.keys()
    assert objective_of(config) == "top1"
    assert not config.reads_labels
    require_teachers_classes(dataset, 10)
    with pytest.raises(BadInput, match="have 10 classes, method.teacher has 7: use --evaluate.method rankme"):
        require_teachers_classes(dataset, 7)
    with pytest.raises(BadInput, match="evaluate.projections needs a projection head, which distillation does not"):
        config.with_overrides({"evaluate.projections": True})
