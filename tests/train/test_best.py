"""The best check is kept and a run that no longer improves ends; both as if the run had not been interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from gloo import run_workers
from simclr_ray.config import BadInput, Config, EvaluateConfig
from simclr_ray.data.dataset import Dataset
from simclr_ray.export.encoder import exported
from simclr_ray.membership.member import Fenced
from simclr_ray.orchestrate.attempt import BestEncoder
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import BEST, Row, read_rows
from simclr_ray.train import checkpoint, run_log
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.check import objective_of
from simclr_ray.train.control import Ended, Interrupted
from simclr_ray.train.run_log import JsonLines
from simclr_ray.train.state import Snapshot, initial_state
from simclr_ray.train.worker import LocalWorker
from small_runs import TINY, Killed, local_blocks, synthetic_dataset

FOUND = {8: 10.0, 16: 30.0, 24: 20.0, 32: 30.0, 40: 50.0}
"""kNN accuracy by step: a later check that is as good as the best is no better."""
CHECKED = TINY.with_overrides({"train.epochs": 5, "evaluate.every_epochs": 1, "evaluate.keep_best": True})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 400)


def go(config: Config, dataset: Dataset, folder: Path, *, killed_at: tuple[str, int] | None = None) -> tuple:
    """One attempt: its last step, whether it is done, and the steps whose weights were kept, on rank 0."""
    best: list[tuple[int, float]] = []
    current = 0

    def evaluate(model: torch.nn.Module, step: int, check_control: Callable[[], None]) -> dict[str, float]:
        nonlocal current
        current = step
        if killed_at == ("check", step):
            raise Killed
        return {"knn_top1": FOUND[step]}

    def save_best(model: torch.nn.Module) -> None:
        best.append((current, float(model.encoder.conv1.weight.detach().sum())))
        if killed_at == ("best", current):
            raise Killed

    worker, run = LocalWorker(torch.device("cpu")), open_location(str(folder))
    state = None
    with suppress(Killed):
        state = run_attempt(
            config,
            dataset,
            run,
            worker,
            lambda p: local_blocks(config, dataset, p),
            evaluate=evaluate,
            save_best=save_best,
        )
    return (state.step, state.done, best) if state else (None, False, best)


def test_each_better_check_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    step, done, best = go(CHECKED, dataset, tmp_path)
    assert (step, done) == (40, True)
    assert [at for at, _ in best] == [8, 16, 40]
    assert "reason" not in read_rows(open_location(str(tmp_path)) / "events.jsonl")[-1]


@pytest.mark.parametrize(("patience", "last"), [(1, 24), (2, 32), (3, 40)])
def test_a_run_ends_when_its_checks_are_no_better(dataset: Dataset, tmp_path: Path, patience: int, last: int) -> None:
    config = CHECKED.with_overrides({"evaluate.patience": patience})
    step, done, _ = go(config, dataset, tmp_path)
    assert (step, done) == (last, True)
    event = read_rows(open_location(str(tmp_path)) / "events.jsonl")[-1]
    assert (event["event"], event["step"], event.get("reason")) == (
        "done",
        last,
        "evaluate.patience" if last < 40 else None,
    )
    # Once more, as when the process ended before the encoder was exported: nothing is trained, it is still done.
    assert go(config, dataset, tmp_path)[:2] == (last, True)
    assert [row["step"] for row in read_rows(open_location(str(tmp_path)) / "metrics.jsonl")][-1] == last


def test_a_run_that_ends_early_has_its_last_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved in the background before the check that makes it the last one."""
    write, failed = checkpoint.write, []

    def once_full(run: Location, saved: Snapshot) -> None:
        if saved.step == 24 and not failed:
            failed.append(saved.step)
            raise OSError(28, "No space left on device")
        write(run, saved)

    monkeypatch.setattr(checkpoint, "write", once_full)
    config = CHECKED.with_overrides({"evaluate.patience": 1})
    assert go(config, dataset, tmp_path)[:2] == (24, True)
    run = open_location(str(tmp_path))
    assert checkpoint.complete_steps(run)[-1] == 24
    events = [event["event"] for event in read_rows(run / "events.jsonl") if event["step"] == 24]
    assert events[-3:] == ["save_failed", "save", "done"]


@pytest.mark.parametrize("killed_at", [("check", 16), ("best", 16), ("check", 24), ("check", 32)])
def test_an_interruption_changes_neither(dataset: Dataset, tmp_path: Path, killed_at: tuple[str, int]) -> None:
    config = CHECKED.with_overrides({"evaluate.patience": 2})
    whole = go(config, dataset, tmp_path / "whole")
    assert go(config, dataset, tmp_path / "cut", killed_at=killed_at)[0] is None
    resumed = go(config, dataset, tmp_path / "cut")
    assert resumed[:2] == whole[:2] == (32, True)
    after = [(step, weight) for step, weight in whole[2] if step >= killed_at[1]]
    assert resumed[2] == after  # the same weights, to the bit


def test_an_early_stop_changes_neither(dataset: Dataset, tmp_path: Path) -> None:
    """Its check is no check of the run, which has one after two epochs, after four and at its end."""
    config = CHECKED.with_overrides({"evaluate.patience": 2, "evaluate.every_epochs": 2})
    whole = go(config, dataset, tmp_path / "whole")
    assert (whole[:2], [at for at, _ in whole[2]]) == ((40, True), [16, 40])
    stopped = go(config.with_overrides({"saving.stop_after_epochs": 3}), dataset, tmp_path / "cut")
    assert (stopped[:2], [at for at, _ in stopped[2]]) == ((24, False), [16])
    resumed = go(config, dataset, tmp_path / "cut")
    assert (resumed[:2], resumed[2]) == ((40, True), whole[2][1:])


def test_on_an_object_store_the_row_of_a_check_is_written_at_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the next save, workers that go on without rank 0 and a sweep's driver have it from there."""
    run, seen = open_location(str(tmp_path)), []

    class Watching(LocalWorker):
        def report(self, row: Row) -> None:
            if row["step"] == 9:
                seen.extend(each["step"] for each in read_rows(run / "metrics.jsonl") if "knn_top1" in each)

    class OnStore(Location):
        local = None

        def write_bytes(self, content: bytes, **_: object) -> None:
            open_location(self.path).write_bytes(content)

    def lines(file: Location, keep: list[Row]) -> JsonLines:
        return JsonLines(OnStore(file.uri, file.filesystem, file.path), keep)

    monkeypatch.setattr(run_log, "JsonLines", lines)
    config = CHECKED.with_overrides({"logging.every_steps": 1, "train.epochs": 2})
    blocks = partial(local_blocks, config, dataset)
    run_attempt(config, dataset, run, Watching(torch.device("cpu")), blocks, evaluate=lambda *_: {"knn_top1": 1.0})
    assert seen == [8]


@pytest.mark.parametrize("end", [None, Ended(), Interrupted(), Fenced()])
def test_a_best_encoder_that_a_full_disk_refused_is_written_later(
    end: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the latest at the end, unless others go on: they know a better one."""
    run, writes = open_location(str(tmp_path)), []
    write = Location.write_bytes

    def full_at_first(file: Location, content: bytes, **patience: float | None) -> None:
        if file.name == BEST:
            writes.append(patience)
            if len(writes) < 3:
                raise OSError(28, "No space left on device")
        write(file, content, **patience)

    monkeypatch.setattr(Location, "write_bytes", full_at_first)
    model, best = initial_state(CHECKED, torch.device("cpu")).model, BestEncoder(CHECKED, run)
    expected = exported(model.encoder, CHECKED)
    with suppress(Ended, Interrupted, Fenced), best.written():
        best.save(model)
        with torch.no_grad():
            model.encoder.conv1.weight.add_(1)  # training goes on
        best.before(lambda *_: {})(model, 1, lambda: None)
        assert len(writes) == 2
        if end:
            raise end
    if isinstance(end, Fenced):
        assert not (run / BEST).exists()
    else:
        assert (run / BEST).read_bytes() == expected


def test_all_workers_end_together(dataset: Dataset, tmp_path: Path) -> None:
    config = CHECKED.with_overrides({"evaluate.patience": 1})
    found = run_workers(2, go, config, dataset, tmp_path)
    assert [(step, done) for step, done, _ in found] == [(24, True)] * 2
    assert [[at for at, _ in best] for *_, best in found] == [[8, 16], []]  # rank 0 alone keeps it


def test_what_is_compared() -> None:
    assert objective_of(CHECKED) == "knn_top1"
    assert objective_of(CHECKED.with_overrides({"evaluate.method": "rankme"})) == "rankme"
    assert objective_of(CHECKED.with_overrides({"method.name": "supervised"})) == "top1"
    with pytest.raises(BadInput, match=r"set evaluate.every_epochs"):
        EvaluateConfig(patience=2)
