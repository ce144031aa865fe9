"""Checkpoints: a restored state equals the saved one, and a damaged checkpoint is never used."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from simclr_ray.config import BadInput, Config
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import checkpoint_name
from simclr_ray.train import checkpoint
from simclr_ray.train.checkpoint import Saver, newest_valid, prune, steps_in, write
from simclr_ray.train.state import TrainState, initial_state, restore, snapshot

CPU = torch.device("cpu")
SMALL = Config().with_overrides({"model.arch": "resnet18", "model.width": 0.0625, "model.stem": "cifar"})


def trained(config: Config, steps: int = 2) -> TrainState:
    state = initial_state(config, CPU)
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        state.optimizer.step()
        state.step += 1
    return state


def saved(step: int) -> checkpoint.Snapshot:
    state = initial_state(SMALL, CPU)
    state.step = step
    return snapshot(state, seed=0, fingerprint="f", pending_row=None)


def test_a_snapshot_is_one_buffer_which_training_does_not_change() -> None:
    """From a GPU one buffer is pinned and waited for once, where each of its hundreds of tensors would be."""
    state = trained(SMALL.with_overrides({"optim.optimizer": "adamw"}))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    copy = snapshot(state)
    parts = [*copy.model.values(), *copy.optimizer.values()]
    assert {part.untyped_storage().data_ptr() for part in parts} == {parts[0].untyped_storage().data_ptr()}
    assert all(part.is_contiguous() for part in parts)
    assert all(part.data_ptr() % part.element_size() == 0 for part in parts)
    with torch.no_grad():
        for value in state.model.state_dict().values():
            value.zero_()
    assert copy.model.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(copy.model[name], value), name
    moments = state.optimizer.state[state.model.encoder.get_parameter("conv1.weight")]
    for key, value in moments.items():
        assert torch.equal(copy.optimizer[f"encoder.conv1.weight/{key}"], value), key


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return open_location(str(tmp_path))


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_a_restored_state_trains_on_bitwise_like_the_saved_one(run: Location, optimizer: str) -> None:
    config = SMALL.with_overrides({"optim.optimizer": optimizer, "optim.lr_per_256": 0.01})
    state = trained(config)
    state.bad_ids = {7, 3}
    write(run, snapshot(state, seed=0, fingerprint="f", pending_row={"step": 2}))
    found, skipped = newest_valid(run)
    assert found is not None
    assert (skipped, found.state["pending_row"]) == ([], {"step": 2})
    again = initial_state(config, CPU)
    restore(again, found)
    assert (again.step, again.bad_ids) == (2, {3, 7})
    x = torch.randn(4, 3, 8, 8)
    for s in (state, again):
        s.optimizer.zero_grad()
        s.model(x).square().sum().backward()
        s.optimizer.step()
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_snapshot_does_not_change_as_training_continues() -> None:
    state = trained(SMALL)
    copy = snapshot(state, seed=0, fingerprint="f", pending_row=None)
    before = {name: value.clone() for name, value in (copy.model | copy.optimizer).items()}
    trained_on = state.model.encoder.conv1.weight
    with torch.no_grad():
        trained_on.add_(1)
    state.optimizer.state[trained_on]["momentum_buffer"].add_(1)
    assert all(torch.equal(before[name], value) for name, value in (copy.model | copy.optimizer).items())


@pytest.mark.parametrize("name", [*checkpoint.FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["cut to nothing", "cut in the middle", "cut by one", "a bit", "missing"])
def test_a_damaged_newest_checkpoint_is_skipped_and_reported(run: Location, name: str, damage: str) -> None:
    for step in (10, 20):
        write(run, saved(step))
    file = Path(run.path) / "step-00000020" / name
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        file.unlink()
    else:
        kept = {"cut to nothing": b"", "cut in the middle": content[:middle], "cut by one": content[:-1]}
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        file.write_bytes(kept.get(damage, flipped))
    found, skipped = newest_valid(run)
    if name == "manifest.json" and damage == "cut by one":  # only the last newline is gone
        assert found is not None
        assert found.step == 20
        return
    assert found is not None
    assert found.step == 10
    assert "step-00000020" in skipped[0]


def test_an_incomplete_checkpoint_is_replaced(run: Location) -> None:
    write(run, saved(10))
    (run / "step-00000010" / "manifest.json").delete()
    (run / "step-00000010" / "model.safetensors").write_bytes(b"half")
    assert newest_valid(run)[0] is None
    write(run, saved(10))
    assert newest_valid(run)[0] is not None


def test_retention_keeps_the_last_and_the_first_of_every_period(run: Location) -> None:
    for step in (5, 10, 12, 20, 24, 31, 35):
        (run / checkpoint_name(step) / "manifest.json").write_bytes(b"{}")
    prune(run, 35, keep_last=2, steps_between_kept=10)
    assert steps_in(run) == [5, 10, 20, 31, 35]
    prune(run, 35, keep_last=1, steps_between_kept=None)
    assert steps_in(run) == [35]


def test_retention_does_not_count_damaged_checkpoints(run: Location) -> None:
    """Two attempts died while saving 190 and 200; the run went on from 150 and has just saved 170."""
    for step in (150, 170):
        write(run, saved(step))
    (run / "step-00000190" / "state.json").write_bytes(b"{}")
    (run / "step-00000200" / "manifest.json").write_bytes(b"{}")
    prune(run, 170, keep_last=2, steps_between_kept=None)
    assert steps_in(run) == [150, 170]
    assert newest_valid(run)[0] is not None


def saver(run: Location, **changes: object) -> Saver:
    settings = {"keep_last": 2, "steps_between_kept": None, "still_ours": lambda: True} | changes
    return Saver(run, **settings)


def test_a_save_runs_in_the_background(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(checkpoint, "write", lambda *_: gate.wait(10))
    ours = saver(run)
    assert ours.save(saved(1), wait=False) == []
    assert ours.busy
    assert ours.collect(wait=False) == []
    gate.set()
    assert [(s.step, s.error) for s in ours.collect(wait=True)] == [(1, None)]


def test_a_failing_store_delays_saves_until_patience_ends(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    patient = saver(run)
    assert "No space left" in str(patient.save(saved(1), wait=True)[0].error)
    impatient = saver(run, patience_s=-1.0)
    with pytest.raises(checkpoint.SavesFailed, match="no checkpoint could be written"):
        impatient.save(saved(1), wait=True)


def test_a_failed_save_leaves_nothing_that_takes_the_room_of_the_next(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Location.write_bytes

    def nearly_full(place: Location, content: bytes, **settings: float | None) -> None:
        if place.name == "optimizer.safetensors":
            raise OSError(28, "No space left on device")
        written(place, content, **settings)

    monkeypatch.setattr(Location, "write_bytes", nearly_full)
    ours = saver(run)
    for step in (1, 2):
        assert "No space left" in str(ours.save(saved(step), wait=True)[0].error)
    assert steps_in(run) == []


def test_a_driver_that_lost_the_lease_does_not_save(run: Location) -> None:
    with pytest.raises(BadInput, match="another driver"):
        saver(run, still_ours=lambda: False).save(saved(1), wait=True)
    assert steps_in(run) == []


def test_one_that_loses_the_run_while_it_saves_deletes_no_newer_checkpoint(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was frozen in the middle of a save wakes when others have gone on."""
    ours = True

    def frozen(run: Location, own: checkpoint.Snapshot) -> None:
        nonlocal ours
        for step in (20, 30):
            write(run, saved(step))
        ours = False
        write(run, own)

    monkeypatch.setattr(checkpoint, "write", frozen)
    saver(run, still_ours=lambda: ours).save(saved(10), wait=True)
    assert steps_in(run) == [10, 20, 30]


class Cut(Exception):
    """Simulates the end of the process that was writing."""


@pytest.mark.parametrize("point", range(100))
def test_a_save_cut_at_any_byte_leaves_the_previous_checkpoint_valid(
    point: int, run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 points spread over the bytes of a save, the four files and the borders between them included."""
    write(run, saved(10))
    sizes = [(run / "step-00000010" / name).size() for name in (*checkpoint.FILES, "manifest.json")]
    borders = [sum(sizes[:i]) for i in range(1, 5)]
    at = [0, 1, *(border + shift for border in borders for shift in (-2, -1, 0, 1))][:17]
    spread = [round(i * (sum(sizes) - 3) / 83) for i in range(83)]
    _cut_writes_after(monkeypatch, min((at + spread)[point], sum(sizes) - 2))
    with pytest.raises(Cut):
        write(run, saved(20))
    monkeypatch.undo()
    found, skipped = newest_valid(run)
    assert found is not None
    assert found.step == 10
    assert len(skipped) == (1 if 20 in steps_in(run) else 0)
    assert all(torch.equal(value, found.model[name]) for name, value in saved(10).model.items())


def _cut_writes_after(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    whole = Location.write_bytes

    def cut(self: Location, content: bytes) -> None:
        nonlocal left
        if len(content) <= left:
            left -= len(content)
            return whole(self, content)
        whole(self, content[:left])  # past the atomic rename, as a dying disk might show it
        raise Cut

    monkeypatch.setattr(Location, "write_bytes", cut)
