"""Interrupted and resumed equals undisturbed: weights bitwise, metrics row by row, at one and at several workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gloo import run_workers
from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import read_rows
from simclr_ray.train import checkpoint
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.checkpoint import steps_in
from simclr_ray.train.control import ClusterSignals, Ended, Interrupted
from simclr_ray.train.memory import TooLittleMemory
from simclr_ray.train.metrics import Diverged
from simclr_ray.train.state import Snapshot
from simclr_ray.train.worker import LocalWorker
from small_runs import TINY, Killed, attempt, corrupted, local_blocks, synthetic_dataset, weights

STEPS = 24
MACHINE_FACTS = ("images_per_s", "data_wait_fraction", "time")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 400)
    assert STEPS == 3 * (400 // 48)
    return dataset


def rows(folder: Path) -> list[dict]:
    found = read_rows(open_location(str(folder)) / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in MACHINE_FACTS} for row in found]


def killed_then_resumed(config: Config, dataset: Dataset, folder: Path, step: int) -> dict[str, torch.Tensor]:
    with pytest.raises(Killed):
        attempt(config, dataset, folder, die_after_step=step)
    return weights(attempt(config, dataset, folder))


def undisturbed(config: Config, dataset: Dataset, folder: Path) -> dict[str, torch.Tensor]:
    return weights(attempt(config, dataset, folder))


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (1, {}),
        (1, {"train.pass_size": 24, "optim.optimizer": "adamw", "optim.lr_per_256": 0.001}),
        (2, {"train.pass_size": 24}),
        (3, {"optim.optimizer": "sgd", "optim.lr_per_256": 0.1}),
        (2, {"train.precision": "bf16"}),  # a CPU without instructions for it does the same, slowly
    ],
)
def test_resumed_equals_undisturbed_bitwise(workers: int, changes: dict, dataset: Dataset, tmp_path: Path) -> None:
    config = TINY.with_overrides({"saving.every_steps": 5} | changes)
    whole = run_workers(workers, undisturbed, config, dataset, tmp_path / "whole")
    resumed = run_workers(workers, killed_then_resumed, config, dataset, tmp_path / "cut", 13)
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    events = read_rows(open_location(str(tmp_path / "cut")) / "events.jsonl")
    assert [e["event"] for e in events if e["event"] in ("start", "restore", "done")] == ["start", "restore", "done"]
    assert next(e["step"] for e in events if e["event"] == "restore") == 10


def test_the_loss_falls_and_the_log_is_complete(dataset: Dataset, tmp_path: Path) -> None:
    easy = {"augment.crop_min": 0.9, "augment.jitter_p": 0.0, "augment.grayscale_p": 0.0, "augment.flip_p": 0.0}
    quick = {"train.epochs": 9, "optim.optimizer": "adamw", "optim.lr_per_256": 0.03, "method.temperature": 0.2}
    attempt(TINY.with_overrides(easy | quick), dataset, tmp_path)
    found = read_rows(open_location(str(tmp_path)) / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(2, 3 * STEPS + 1, 2))
    losses = [row["loss"] for row in found]
    assert sum(losses[-6:]) < sum(losses[:6]) - 1, losses
    assert (found[-1]["samples"], found[-1]["epoch"]) == (3 * STEPS * 48, 9.0)
    assert found[0].keys() >= {
        "loss", "lr", "feature_std", "alignment", "uniformity", "images_per_s", "data_wait_fraction", "workers"
    }  # fmt: skip
    assert steps_in(open_location(str(tmp_path))) == [3 * STEPS]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_torn_last_line_of_the_log_is_rewritten(dataset: Dataset, tmp_path: Path) -> None:
    config = TINY.with_overrides({"saving.every_steps": 5})
    undisturbed(config, dataset, tmp_path / "whole")
    with pytest.raises(Killed):
        attempt(config, dataset, tmp_path / "cut", die_after_step=13)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 14, "lo')
    attempt(config, dataset, tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_another_dataset_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    attempt(TINY, dataset, tmp_path / "run")
    other = corrupted(dataset, tmp_path / "other", bad={5})
    with pytest.raises(BadInput, match="another fingerprint"):
        attempt(TINY, other, tmp_path / "run")


def test_bad_images_are_counted_once_each_and_the_run_completes(dataset: Dataset, tmp_path: Path) -> None:
    damaged = corrupted(dataset, tmp_path / "d", bad={3, 50, 51, 200})
    state = attempt(TINY, damaged, tmp_path / "run")
    assert state.step == STEPS
    assert state.bad_ids == {3, 50, 51, 200}
    assert rows(tmp_path / "run")[-1]["bad"] == 4


def too_many_bad(dataset: Dataset, folder: Path) -> str:
    with pytest.raises(BadInput) as error:
        attempt(TINY, dataset, folder)
    return str(error.value)


@pytest.mark.parametrize("bad", [set(range(0, 96, 8)), set(range(16, 24))])
def test_too_many_bad_images_end_the_run_on_every_worker_with_the_list(
    bad: set[int], dataset: Dataset, tmp_path: Path
) -> None:
    damaged = corrupted(dataset, tmp_path / "d", bad=bad)
    messages = run_workers(2, too_many_bad, damaged, tmp_path / "run")
    assert messages[0] == messages[1]
    assert "cannot be decoded" in messages[0]
    listed = {int(word) for word in messages[0].split("rows ")[1].split(";")[0].replace("...", "").split(", ") if word}
    assert listed <= bad


def test_a_non_finite_loss_raises_diverged(dataset: Dataset, tmp_path: Path) -> None:
    config = TINY.with_overrides({"optim.optimizer": "sgd", "optim.lr_per_256": 1e30, "optim.warmup_epochs": 0.0})
    with pytest.raises(Diverged, match="lower optim.lr_per_256"):
        attempt(config, dataset, tmp_path)


def test_a_full_disk_delays_saves_and_changes_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY.with_overrides({"saving.every_steps": 2})
    whole = undisturbed(config, dataset, tmp_path / "whole")
    write = checkpoint.write

    def full_for_a_while(run: Location, saved: Snapshot) -> None:
        if 5 < saved.step < 15:
            raise OSError(28, "No space left on device")
        write(run, saved)

    monkeypatch.setattr(checkpoint, "write", full_for_a_while)
    state = attempt(config, dataset, tmp_path / "full")
    assert all(torch.equal(value, whole[name]) for name, value in weights(state).items())
    events = read_rows(open_location(str(tmp_path / "full")) / "events.jsonl")
    assert any("No space left" in event["error"] for event in events if event["event"] == "save_failed")
    assert steps_in(open_location(str(tmp_path / "full")))[-1] == STEPS


def test_a_store_that_fails_for_too_long_ends_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY.with_overrides({"saving.every_steps": 1, "saving.patience_s": 0.0})
    monkeypatch.setattr(checkpoint, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(checkpoint.SavesFailed, match="No space left"):
        attempt(config, dataset, tmp_path)


def too_large(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")


@pytest.mark.parametrize("where", ["attempt.training_step", "batch._empty", "step_log.metrics_row"])
def test_too_little_memory_for_a_share_of_a_pass_names_pass_size(dataset: Dataset, tmp_path: Path, where: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"simclr_ray.train.{where}", too_large)
        with pytest.raises(TooLittleMemory, match="or set train.pass_size to a smaller divisor of 48") as named:
            attempt(TINY, dataset, tmp_path)
    assert named.value.workers == 1


def test_too_little_memory_in_a_part_of_a_gpu_asks_for_a_larger_one(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simclr_ray.train.attempt.training_step", too_large)
        with pytest.raises(
            TooLittleMemory, match=r"fit into 0.25 of the memory of .*: raise resources.gpus_per_worker"
        ):
            attempt(TINY.with_overrides({"resources.gpus_per_worker": 0.25}), dataset, tmp_path)


def test_too_little_memory_for_the_check_names_its_settings(dataset: Dataset, tmp_path: Path) -> None:
    config, worker = TINY.with_overrides({"evaluate.every_epochs": 1}), LocalWorker(torch.device("cpu"))
    run = open_location(str(tmp_path))
    with pytest.raises(TooLittleMemory, match="lower evaluate.bank_rows") as named:
        run_attempt(config, dataset, run, worker, lambda p: local_blocks(config, dataset, p), evaluate=too_large)
    assert named.value.workers == 0  # more of them would not help


def test_an_interrupted_evaluation_is_repeated_on_resume(dataset: Dataset, tmp_path: Path) -> None:
    """The checkpoint before an evaluation holds the pending metrics row."""
    config = TINY.with_overrides({"evaluate.every_epochs": 1, "evaluate.test": "x"})
    run = open_location(str(tmp_path))
    calls = []

    def evaluate(model: torch.nn.Module, step: int, check_control: object) -> dict[str, float]:
        calls.append(step)
        if calls == [8, 16]:
            raise Killed
        return {"knn_top1": float(step)}

    def go() -> None:
        worker = LocalWorker(torch.device("cpu"))
        run_attempt(config, dataset, run, worker, lambda p: local_blocks(config, dataset, p), evaluate=evaluate)

    with pytest.raises(Killed):
        go()
    go()
    assert calls == [8, 16, 16, 24]
    found = {row["step"]: row.get("knn_top1") for row in read_rows(run / "metrics.jsonl")}
    assert {step: value for step, value in found.items() if value} == {8: 8.0, 16: 16.0, 24: 24.0}
    assert sorted(found) == list(range(2, STEPS + 1, 2))
    assert json.loads((tmp_path / "step-00000024" / "state.json").read_text())["step"] == 24


def ended_by(signals: ClusterSignals, after_batch: int, config: Config, dataset: Dataset, folder: Path) -> list[int]:
    """An attempt by two workers in whose evaluation `signals` come after a batch; the steps whose evaluation began."""
    current, evaluated = ClusterSignals(), []

    class SignalledWorker(LocalWorker):
        def poll_signals(self) -> ClusterSignals:
            return current

    def evaluate(model: torch.nn.Module, step: int, check_control: Callable[[], None]) -> dict[str, float]:
        nonlocal current
        evaluated.append(step)
        for batch in range(3):
            if batch == after_batch and step == 16:
                current = signals
            check_control()
        return {"knn_top1": float(step)}

    run, worker = open_location(str(folder)), SignalledWorker(torch.device("cpu"))
    slices = config.train.global_batch // dataset.slice_rows // worker.size
    with suppress(Interrupted, Ended):
        run_attempt(config, dataset, run, worker, lambda p: local_blocks(config, dataset, p, slices), evaluate=evaluate)
    return evaluated


@pytest.mark.parametrize("kind", ["notice", "end requested"])
def test_an_evaluation_stops_when_signalled_and_is_repeated_on_resume(
    kind: str, dataset: Dataset, tmp_path: Path
) -> None:
    config = TINY.with_overrides({"evaluate.every_epochs": 1})
    signals = ClusterSignals(deadline=0.0, nodes=("n",)) if kind == "notice" else ClusterSignals(end_requested=True)
    assert run_workers(2, ended_by, signals, 1, config, dataset, tmp_path) == [[8, 16]] * 2
    run = open_location(str(tmp_path))
    stop = read_rows(run / "events.jsonl")[-1]
    assert (stop["event"], stop["step"]) == ("stop", 16)
    assert stop["reason"] == ("preemption" if kind == "notice" else "asked to end")
    assert run_workers(2, ended_by, ClusterSignals(), 9, config, dataset, tmp_path) == [[16, 24]] * 2
    found = {row["step"]: row.get("knn_top1") for row in read_rows(run / "metrics.jsonl")}
    assert {step: value for step, value in found.items() if value} == {8: 8.0, 16: 16.0, 24: 24.0}


def test_stopped_after_some_epochs_and_continued_equals_undisturbed(dataset: Dataset, tmp_path: Path) -> None:
    whole = undisturbed(TINY, dataset, tmp_path / "whole")
    early = attempt(TINY.with_overrides({"saving.stop_after_epochs": 1.4}), dataset, tmp_path / "early")
    assert early.step == 11
    event = read_rows(open_location(str(tmp_path / "early")) / "events.jsonl")[-1]
    assert (event["event"], event["step"], event["reason"]) == ("stop", 11, "saving.stop_after_epochs")
    again = attempt(TINY.with_overrides({"saving.stop_after_epochs": 1.0}), dataset, tmp_path / "early")
    assert again.step == 11, "what is trained stays trained"
    continued = undisturbed(TINY, dataset, tmp_path / "early")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
