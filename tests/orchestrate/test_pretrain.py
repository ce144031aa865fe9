"""Pretraining as a user starts it: what is refused, damaged data, Ctrl-C, and a second driver."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from commands import events, finish, metrics, start, wait_until
from simclr_ray.config import Config
from simclr_ray.orchestrate.pretrain import pretrain


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def written_in_format_1(run: Path, config: Config) -> None:
    groups = json.loads(config.to_json())
    del groups["format"]
    run.mkdir()
    (run / "config.json").write_text(json.dumps(groups))


def test_an_unfinished_run_of_another_order_of_samples_is_refused(tmp_path: Path) -> None:
    written_in_format_1(tmp_path / "old", Config())
    code, _, err = finish(start(tmp_path, "old", 1))
    assert code == 2
    assert "another order of samples (format 1, this is 2)" in err
    assert len(err.strip().splitlines()) == 1


def test_a_finished_run_of_another_order_of_samples_is_left_as_it_is(tmp_path: Path) -> None:
    written_in_format_1(tmp_path / "old", Config())
    before = (tmp_path / "old" / "config.json").read_bytes()
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 24}\n')
    (tmp_path / "old" / "encoder.safetensors").write_bytes(b"")
    assert pretrain(Config(), "old", str(tmp_path)).step == 24
    assert (tmp_path / "old" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.global-batch": 100}, "no multiple of the dataset's slices of 32"),
        ({"train.global-batch": 2048}, "more than the data holds"),
        (
            {"resources.max-workers": 9, "resources.cpus-per-worker": 0.1, "resources.data-cpus": 0.1},
            "more than the 4 slices of a pass",
        ),
        ({"resources.max-workers": 2, "resources.cpus-per-worker": 1}, "leave 0 of 2 CPUs"),
        ({"data.train": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(storage: Path, changes: dict[str, object], message: str) -> None:
    code, _, err = finish(start(storage, "bad", 1, **changes))
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_unwritable_storage_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = finish(start(tmp_path / "file", "run", 1))
    assert code == 2
    assert "cannot write to --storage" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_driver_on_a_live_run_is_refused_and_ctrl_c_ends_the_first(workers: int, storage: Path) -> None:
    """One worker trains in the driver itself, two under Ray Train."""
    name = f"live-{workers}"
    first = start(storage, name, workers, **{"train.epochs": 60})
    wait_until(lambda: bool(metrics(storage / name)), first, "the first step is done")
    code, _, err = finish(start(storage, name, workers, **{"train.epochs": 60}))
    still_going = first.poll() is None
    first.send_signal(signal.SIGINT)
    interrupted, _, output = finish(first, 60)
    assert (interrupted, "the same command goes on" in output) == (130, True), output
    last = events(storage / name)[-1]
    assert (last["event"], last["reason"]) == ("stop", "asked to end")
    assert (storage / name / f"step-{last['step']:08d}" / "manifest.json").exists()
    assert code == 2
    assert "is being trained by another driver" in err
    assert still_going


def test_damaged_data_end_the_run_with_one_line(storage: Path) -> None:
    """A data worker's BadInput reaches the user through Ray Data and Ray Train."""
    source = "synthetic:512"
    code, _, err = finish(start(storage, "first", 1, **{"data.train": source, "train.epochs": 1}))
    assert code == 0, err
    prepared = next(path for path in (storage / "data").iterdir() if path.name.startswith("synthetic-512-"))
    shard = next(prepared.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    cache = {"resources.cache-dir": storage / "cache"}  # the first run's would hide the damage
    code, _, err = finish(start(storage, "second", 1, **{"data.train": source} | cache))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert "missing or damaged" in errors[0]
    assert "Traceback" not in err


def test_a_crash_loop_ends_with_its_cause(storage: Path) -> None:
    """A file in the place of a folder: each attempt fails in the same way, without a new checkpoint."""
    (storage / "loop").mkdir()
    (storage / "loop" / "tensorboard").write_text("")
    code, _, err = finish(start(storage, "loop", 1))
    assert code == 1
    assert "tensorboard" in err.strip().splitlines()[-1]
    assert len(events(storage / "loop", "attempt")) == 3
    assert "tensorboard" in events(storage / "loop")[-1]["cause"]


def test_a_stream_longer_than_its_horizon_continues_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import ray

    from simclr_ray.data.load import SliceLoader
    from simclr_ray.orchestrate import stream
    from simclr_ray.train.attempt import order_of
    from small_runs import TINY, synthetic_dataset

    dataset = synthetic_dataset(tmp_path / "d", 200)
    order, positions = order_of(TINY, dataset), np.arange(10)
    monkeypatch.setattr(stream, "HORIZON", 4)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        blocks = list(stream.blocks(stream.plan_stream(TINY, dataset, order, 1, 1.0), positions))
    finally:
        ray.shutdown()
    expected = SliceLoader(dataset, order, TINY.augment, None)(positions)
    for key, value in expected.items():
        np.testing.assert_array_equal(np.concatenate([block[key] for block in blocks]), value)


@pytest.mark.parametrize(
    ("size", "pass_size", "workers", "expected"),
    [
        (224, 4096, 4, (3, 11)),  # of 32 MiB, and as many as hold the 32 slices of a worker's step
        (224, 4096, 1, (3, 32)),  # half of what the stream may hold
        (32, 256, 3, (48, 2)),  # a whole step of 16 passes, of which each is one of three slices or less
    ],
)
def test_a_step_is_prefetched_in_blocks_that_hold_one_at_most(
    size: int, pass_size: int, workers: int, expected: tuple[int, int]
) -> None:
    from simclr_ray.data.order import Order
    from simclr_ray.orchestrate.stream import plan_stream

    order = Order(seed=0, rows=50_000, slice_rows=32, global_batch=4096, pass_size=pass_size)
    config = Config().with_overrides({"augment.size": size})
    plan = plan_stream(config, None, order, workers, 1.0)  # type: ignore[arg-type]  # it only passes the dataset on
    assert (plan.block_slices, plan.prefetched_blocks) == expected
