"""Commands: one clear line and exit code 2 for what the user can correct."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simclr_ray.config import Config
from simclr_ray.recipes import RECIPES

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "experiments" / script), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe first: quickstart"),
        (["quickstrat"], "did you mean quickstart?"),
        (["quickstart", "--method.temprature", "0.2"], "--method.temperature"),
        (["quickstart", "--method.temperature", "warm"], "--method.temperature"),
        (["quickstart", "--method.temperature", "-1"], "method.temperature must be positive"),
        (["quickstart", "--train.pass-size", "100"], "does not divide"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = command("pretrain.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_shows_the_recipes_own_values(tmp_path: Path) -> None:
    done = command("pretrain.py", "cifar10_rn18_200ep", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--method.temperature" in done.stdout
    assert "default: 0.5" in done.stdout


def test_every_recipe_is_a_valid_config() -> None:
    for name, recipe in RECIPES.items():
        assert Config.from_json(recipe().to_json()) == recipe(), name
        assert f"python experiments/pretrain.py {name}" in (recipe.__doc__ or ""), name
