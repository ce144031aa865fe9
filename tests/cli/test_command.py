"""Commands: one clear line and exit code 2 for what the user can correct."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from simclr_ray.cli.command import Recipe, choose_recipe, parse_with_config
from simclr_ray.config import BadInput, BarlowTwinsConfig, Config
from simclr_ray.recipes import RECIPES, quickstart

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
        (["quickstart", "--method", "byool"], "the methods are simclr, byol"),
        (["imagenet_rn50_b256_100ep", "--evaluate.test", "x"], "set --evaluate.every-epochs too"),
        (["quickstart", "--evaluate.projections", "--evaluate.method", "rankme"], "method knn or linear"),
        (["quickstart", "--method", "swav", "--augment.local-views", "6"], "augment.local_size 96: local views are no"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = command("pretrain.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate.py r knn --train a --test b --epochs 3", "--epochs is for finetune, not for knn"),
        ("evaluate.py r finetune --train a --test b --crops 8", "--crops is for linear, not for finetune"),
        ("evaluate.py r linear --train a --test b --temperature 0.2", "--temperature is for knn, not for linear"),
        ("prepare.py a b --fraction 0.1 --max-side 64", "--max-side is for images that are prepared"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(words: str, message: str, tmp_path: Path) -> None:
    script, *arguments = words.split()
    done = command(script, *arguments, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert message in done.stderr


OWN = """
from simclr_ray.config import Config
from simclr_ray.recipes import quickstart

def _epochs() -> int:
    return 3

def mine() -> Config:
    \"\"\"A recipe of mine.\"\"\"
    return quickstart().with_overrides({"train.epochs": _epochs()})
"""


@pytest.mark.parametrize("flags", [["--method", "barlow-twins"], ["--method.name=barlow_twins"]])
def test_a_method_is_chosen_by_name_and_its_settings_can_be_overridden(flags: list[str]) -> None:
    line = ["--data.train", "here", *flags, "--method.off-diagonal-weight", "0.01", "--name", "r"]
    _, config = parse_with_config(Named, line, quickstart(), None)
    assert config.method == BarlowTwinsConfig(off_diagonal_weight=0.01)
    assert config == quickstart().with_overrides(
        {"data.train": "here"} | {"method.name": "barlow_twins", "method.off_diagonal_weight": 0.01}
    )
    with pytest.raises(BadInput, match="--method.temperature"):
        parse_with_config(Named, [*flags, "--method.temperature", "0.2"], quickstart(), None)


@dataclass
class Named:
    name: str = "run"


def test_a_recipe_may_be_a_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    expected = Recipe(name="mine", config=quickstart().with_overrides({"train.epochs": 3}), doc="A recipe of mine.")
    for word in (f"{file}", f"{file}:mine"):
        assert choose_recipe([word, "--name", "r"], RECIPES) == (expected, ["--name", "r"])
    file.write_text(OWN + "\ndef other() -> Config:\n    return quickstart()\n")
    recipe, _ = choose_recipe([f"{file}:other"], RECIPES)
    assert (recipe.name, recipe.config) == ("other", quickstart())
    with pytest.raises(BadInput, match="holds several functions: write .*own.py:FUNCTION with one of mine, other"):
        choose_recipe([str(file)], RECIPES)
    with pytest.raises(BadInput, match="'othr': did you mean other?"):
        choose_recipe([f"{file}:othr"], RECIPES)
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no recipe file"),
        ("", "holds no function"),
        ("from simclr_ray.recipes import quickstart", "holds no function"),
        ("def mine(:", "SyntaxError"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(0)", "SystemExit"),
        ("def mine(x): return x", "TypeError: mine() missing 1 required"),
        ("def mine(): return {}", "mine() returns a dict: a recipe returns a Config"),
        ("def mine(): raise ValueError('one\\ntwo')", "ValueError: one"),
        (OWN.replace("_epochs()}", "-1}"), "train.epochs must be at least 1"),
        (b"\xff\xfe\x00", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_recipe_is_bad_input_in_one_line(
    content: str | bytes | None, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as raised:
        choose_recipe([str(file)], RECIPES)
    assert says in str(raised.value)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_help_shows_the_recipes_own_values(tmp_path: Path) -> None:
    done = command("pretrain.py", "cifar10_rn18_200ep", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--method.temperature" in done.stdout
    assert "default: 0.5" in done.stdout


def test_every_recipe_is_a_valid_config() -> None:
    for name, recipe in RECIPES.items():
        assert Config.from_json(recipe().to_json()) == recipe(), name
        assert f"python experiments/pretrain.py {name}" in (recipe.__doc__ or ""), name


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        ("print('words')", 141, ""),
        ("print('words ' * 10**6)", 141, ""),
        ("(_ for _ in ()).throw(BrokenPipeError('a socket'))", 1, "BrokenPipeError: a socket"),
    ],
    ids=["at the end", "in the middle", "another pipe"],
)
def test_an_output_that_nobody_reads_ends_a_command_without_a_word(main: str, code: int, said: str) -> None:
    """As `report.py RUN | head` does; another pipe that breaks is a failure."""
    line = [sys.executable, "-c", f"from simclr_ray.cli.command import run_command; run_command(lambda _: {main})"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if code == 141:
            process.stdout.close()
            process.stdout = None
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.strip().splitlines()[-1:] == ([said] if said else [])
