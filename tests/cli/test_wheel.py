"""A wheel, installed without the checkout, has the commands."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from commands import ROOT, TIMEOUT_S


def run(line: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        line, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`simclr-ray` out of a wheel that was built from the files git knows, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    files = run(["git", "-C", str(ROOT), "ls-files", "simclr_ray", "pyproject.toml", "README.md", "LICENSE"], folder)
    for name in files.splitlines():
        if (ROOT / name).exists():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    wheel = folder / run([sys.executable, "-c", build], folder / "tree").splitlines()[-1]
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
        (scripts,) = (name for name in packed.namelist() if name.endswith("entry_points.txt"))
        assert "simclr-ray = simclr_ray.cli.main:entry" in packed.read(scripts).decode()
    start = f"import sys; sys.path.insert(0, {str(folder / 'site')!r}); from simclr_ray.cli.main import entry"
    check = f"import simclr_ray; assert simclr_ray.__file__.startswith({str(folder / 'site')!r})"
    return [sys.executable, "-c", f"{start}; {check}; entry()"]


def test_pretrain_lists_the_settings_of_a_recipe(command: list[str], tmp_path: Path) -> None:
    assert "--method.temperature" in run([*command, "pretrain", "quickstart", "--help"], tmp_path)


def test_prepare_writes_a_dataset(command: list[str], tmp_path: Path) -> None:
    said = run([*command, "prepare", "synthetic:64", "data"], tmp_path)
    assert "64 images, labelled, 10 classes, in " in said
    assert (tmp_path / "data" / "dataset.json").exists()


def test_a_wrong_command_names_the_nearest(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "pretrian"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "did you mean pretrain?" in done.stderr
