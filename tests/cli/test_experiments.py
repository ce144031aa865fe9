"""Every command of experiments/ as a user types it, one after the other in one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import torch

from commands import FAST, ROOT, SMALL, TIMEOUT_S
from forked import run_forked
from simclr_ray.data.prepare.synthetic import draw

EXPERIMENTS = ROOT / "experiments"
FLAGS = {key: value for key, value in SMALL.items() if key != "data.train"} | {"train.epochs": 1}
SETTINGS = " ".join(f"--{key} {value}" for key, value in FLAGS.items())
DEMO = f"""
from simclr_ray.cli.demo import demo
from simclr_ray.recipes import quickstart

flags = {FLAGS} | {{"data.train": "synthetic:256", "evaluate.test": "synthetic:64:test"}}
demo(quickstart().with_overrides({{key.replace("-", "_"): value for key, value in flags.items()}}), "runs")
"""
SPACE = "method.momentum=0.9:0.999 optim.lr-per-256=0.05:0.5:log"
PRETRAIN = f"pretrain.py quickstart --data.train photos {SETTINGS}"
# Command lines, and text that each prints. Later ones read what earlier ones wrote.
TYPED = {
    "prepare.py synthetic:256 labelled": "256 images, labelled, 10 classes, in ",
    "preview.py photos --recipe quickstart --images 3": "sheet: preview.png",
    PRETRAIN: "check: rankme on images held out of photos, because it ",
    "evaluate.py runs/quickstart transfer --train labelled --test synthetic:64:test": "pretrained",
    f"pretrain.py quickstart --data.train labelled --method byol --model.init runs/quickstart --name warm {SETTINGS}": (
        "done at step 2"
    ),
    "evaluate.py runs/warm knn --train labelled --test synthetic:64:test --baselines": "initial",
    "embed.py runs/quickstart labelled features": "256 images, features of 32 numbers: ",
    "neighbours.py features --query 0 --neighbours 5": "sheet: neighbours.png",
    "export.py runs/quickstart exported --format torch.export": "model = torch.export.load(",
    "evaluate.py runs/quickstart finetune --train labelled --test synthetic:64:test --fraction 0.5 --epochs 2 "
    "--from-head 1": (
        "fine-tuning pretrained: 2 epochs on 126 images"  # half of each class, 12 or 13 images
    ),
    "pretrain.py quickstart --data.train photos --method distillation --name student --method.from-head 1 --model.init "
    f"runs/quickstart --method.teacher runs/quickstart-finetune-pretrained-* {SETTINGS}": "done at step 2",
    "report.py runs/quickstart": "plots and all of this: ",
    "report.py runs/quickstart --goodput": "goodput",
    "report.py runs/quickstart --against runs/warm --train labelled --test synthetic:64:test": "linear: ",
    "report.py runs/quickstart runs/warm": "the runs were not trained on the same data",
    "plan.py quickstart": "images/s",
    f"sweep.py quickstart --data.train labelled --trials 2 --method byol --space {SPACE} {SETTINGS}": (
        "2 of 2 trials: 2 complete"
    ),
    "report.py runs/quickstart-sweep": "2 of 2 trials: 2 complete",
    f"ablate.py head quickstart --data.train labelled {SETTINGS}": "3 of 3 runs complete",
    "report.py runs/quickstart-head": "h above z with the head mlp: ",
    "demo": "kNN accuracy on 64 synthetic images of 10 classes",
    "status.py": "quickstart-sweep",
    "status.py --json": '"quickstart-sweep"',
}


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["-c", DEMO] if line == "demo" else [str(EXPERIMENTS / line.split()[0]), *line.split()[1:]]
    words = [match for word in words for match in (glob(word, root_dir=folder) if word.endswith("*") else [word])]
    where: dict[str, Any] = {"cwd": folder, "env": os.environ | FAST, "timeout": TIMEOUT_S}
    if line == PRETRAIN:  # as users start it
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, **where)
    return run_forked(words, **where)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 images without labels, and a broken one, in `photos`."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "photos").mkdir()
    for number in range(300):
        image = simplejpeg.encode_jpeg(draw("train", number), colorsubsampling="444")
        (folder / "photos" / f"{number}.jpg").write_bytes(image)
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    return {line: run(line, folder) for line in TYPED}


def test_every_command_is_typed_here() -> None:
    scripts = {path.stem for path in EXPERIMENTS.glob("*.py")}
    assert scripts == {line.split()[0].removesuffix(".py") for line in TYPED}


@pytest.mark.parametrize("line", TYPED, ids=lambda line: line[:60])
def test_a_command_succeeds(line: str, done: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert done[line].returncode == 0, done[line].stderr
    assert TYPED[line] in done[line].stdout
    assert "Traceback" not in done[line].stderr


@pytest.mark.parametrize("line", [PRETRAIN, "demo"], ids=["pretrain", "demo"])
def test_the_printed_lines_load_the_encoder(
    line: str, done: dict[str, subprocess.CompletedProcess[str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = done[line].stdout
    found: dict = {}
    monkeypatch.chdir(folder)
    exec(printed[printed.index("import simclr_ray") :], found)
    assert found["encoder"](torch.zeros(1, 3, 16, 16)).shape == (1, 32)


def test_the_status_is_printed_as_json(done: dict[str, subprocess.CompletedProcess[str]]) -> None:
    runs = {run["name"]: run["state"] for run in json.loads(done["status.py --json"].stdout)}
    (finetuned,) = [name for name in runs if name.startswith("quickstart-finetune-pretrained-")]
    assert runs == {
        finetuned: "finished",
        "demo": "finished",
        "quickstart": "finished",
        "quickstart-head": "sweep",
        "quickstart-sweep": "sweep",
        "student": "finished",
        "warm": "finished",
    }


def test_a_finished_run_whose_check_was_adapted_is_not_changed(
    folder: Path, done: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    events = folder / "runs" / "quickstart" / "events.jsonl"
    before = events.read_bytes()
    again = run(PRETRAIN, folder)
    assert (again.returncode, "done at step 2" in again.stdout) == (0, True), again.stderr
    assert events.read_bytes() == before


def test_a_finished_run_of_other_data_is_refused(
    folder: Path, done: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    refused = run(PRETRAIN.replace("photos", "labelled"), folder)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1)
    assert "is finished, and was trained on photos, not labelled: use another --name" in refused.stderr


def test_bad_images_are_reported(done: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert "1 bad images were left out, listed in " in done[PRETRAIN].stdout


@pytest.mark.slow
def test_a_run_whose_check_was_adapted_resumes(folder: Path) -> None:
    line = f"{PRETRAIN} --name cut"
    for command, message in ((f"{line} --saving.stop-after-epochs 0.5", "stopped at step 1"), (line, "done at step 2")):
        process = run(command, folder)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count("check: rankme on images held out of photos") == 1
        assert message in process.stdout
