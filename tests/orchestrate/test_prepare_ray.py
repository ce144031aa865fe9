"""Preparation on a real local cluster: the same dataset as in one process, and errors of one line."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from commands import ROOT
from forked import run_forked
from image_sources import contents, save_folder, save_parquet, save_tars, values
from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE, bad_images, is_dataset
from simclr_ray.data.prepare import source as source_module
from simclr_ray.data.prepare.source import Source
from simclr_ray.orchestrate import prepare as prepare_module
from simclr_ray.orchestrate.prepare import on_ray, prepare, prepare_into


@pytest.fixture(scope="module", params=[1, 2], ids=["1cpu", "2cpus"])
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    ray.init(address="local", num_cpus=request.param, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def tasks(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs as tasks on the cluster, in small ones."""
    monkeypatch.setattr(prepare_module, "SMALL_BYTES", 0)
    monkeypatch.setattr(source_module, "TASK_ROWS", 16)


@pytest.mark.parametrize("save", [save_folder, save_tars, save_parquet])
def test_tasks_on_the_cluster_make_the_same_dataset_as_this_process(
    tmp_path: Path, tasks: None, monkeypatch: pytest.MonkeyPatch, save: object
) -> None:
    spec = save_folder(tmp_path / "in", 120, bad=(5, 60)) if save is save_folder else save(tmp_path / "in")  # type: ignore[operator]
    by_tasks = prepare(spec, str(tmp_path / "tasks"), seed=3, slice_rows=8)
    monkeypatch.setattr(prepare_module, "SMALL_BYTES", 1 << 40)
    monkeypatch.setattr(prepare_module, "on_ray", None)  # not called
    here = prepare(spec, str(tmp_path / "here"), seed=3, slice_rows=8)
    assert by_tasks.fingerprint == here.fingerprint
    assert contents(by_tasks) == contents(here)
    assert [bad["path"] for bad in bad_images(by_tasks)] == [bad["path"] for bad in bad_images(here)] != []


def test_the_order_does_not_depend_on_which_task_ends_first(tasks: None) -> None:
    def read(work: pa.Table) -> Iterator[pa.Table]:
        first = work["index"][0].as_py()
        time.sleep(1.0 if first == 0 else 0.0)
        yield pa.table([[b"x"], [first], ["x"]], schema=IMAGE)

    work = pa.table({"index": list(range(12))})
    source = Source(spec="x", digest="x", work=work, listed=False, read=read, classes=None, rows=12, bytes=12 * 2**25)
    assert pa.concat_tables(on_ray(source, work, None))["label"].to_pylist() == list(range(12))


def test_bad_input_of_a_task_is_raised_unwrapped(tmp_path: Path, tasks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = save_folder(tmp_path / "in", 40)
    opened = source_module.open_source(spec)
    (tmp_path / "in/class1/0005.png").unlink()
    monkeypatch.setattr(prepare_module, "open_source", lambda spec: opened)
    with pytest.raises(BadInput, match=r"^\S*0005.png was listed but cannot be read on") as raised:
        prepare(spec, str(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert not is_dataset(str(tmp_path / "out"))


def test_prepare_into_makes_a_copy_once_and_again_when_the_folder_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, storage = save_folder(tmp_path / "in", 20), str(tmp_path / "runs")
    first = prepare_into(storage, spec)
    assert first.uri.startswith(f"{storage}/data/in-")
    assert prepare_into(storage, spec) == first
    assert prepare_into(storage, first.uri) == first
    save_folder(tmp_path / "in", 24)
    second = prepare_into(storage, spec)
    assert (first.rows, second.rows) == (20, 24)
    assert second.uri != first.uri
    assert prepare_into(storage, spec, seed=1).uri != second.uri
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["preparing", spec, "20", "preparing", "preparing"]


def test_settings_and_places_that_cannot_work_are_refused(tmp_path: Path) -> None:
    spec = save_folder(tmp_path / "in", 4)
    for arguments, reason in [
        ({"seed": -1}, "seed must lie in"),
        ({"max_side": 3}, "max_side must be at least"),
        ({"slice_rows": 0}, "slice_rows must be at least"),
        ({"dest": str(tmp_path / "in" / "out")}, "lies inside the source"),
        ({"source": "torchvision:Nothing"}, "torchvision.datasets has no Nothing"),
        ({"source": "torchvision:CIFAR10:val"}, "has no CIFAR10 with a split val"),
    ]:
        with pytest.raises(BadInput, match=reason):
            prepare(**({"source": spec, "dest": str(tmp_path / "out")} | arguments))  # type: ignore[arg-type]


def test_a_torchvision_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    textures = tmp_path / "torch/datasets/dtd/dtd"  # torchvision's DTD takes any images that lie as its own do
    save_folder(textures / "images", 12)
    (textures / "labels").mkdir()
    names = [f"class{i % 4}/{i:04d}.png\n" for i in range(12)]
    (textures / "labels/train1.txt").write_text("".join(names))
    dataset = prepare("torchvision:DTD", str(tmp_path / "out"))
    assert dataset.classes == ("class0", "class1", "class2", "class3")
    order = values(dataset)
    assert sorted(order) == list(range(12))
    assert contents(dataset)["label"].to_pylist() == [i % 4 for i in order]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked([str(ROOT / "experiments" / "prepare.py"), *arguments], timeout=200)


def test_the_command(tmp_path: Path) -> None:
    done = command(save_folder(tmp_path / "in", 20, bad=(3,)), str(tmp_path / "out"), "--max-side", "8")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        r"19 images, labelled, 4 classes",
        r"fingerprint [0-9a-f]{64}",
        r"1 bad images were left out",
        r"class3/0003.png: ",
        r"pretrain on it: python experiments/pretrain.py RECIPE --data.train \S+out",
    ):
        assert re.search(words, done.stdout), done.stdout
    refused = command(str(tmp_path / "missing"), str(tmp_path / "out2"))
    assert refused.returncode == 2
    assert re.fullmatch(r"error: \S+missing does not exist; .*\n", refused.stderr), refused.stderr
