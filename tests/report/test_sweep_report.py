"""What a sweep found, read from real Optuna studies: ranking, recipe, commands, importances, plots, page."""

from __future__ import annotations

import math
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from optuna.trial import FrozenTrial

from simclr_ray.cli.command import Recipe, choose_recipe, parse_with_config
from simclr_ray.cli.pretrain import Arguments
from simclr_ray.config import BadInput, science_changes
from simclr_ray.recipes import RECIPES, quickstart
from simclr_ray.report.page import write_page
from simclr_ray.report.plots import plots
from simclr_ray.report.surface import smoothed
from simclr_ray.report.sweep import best_recipe, commands, cost, findings, recipe_name, table
from simclr_ray.sweep.importances import Importances, importances
from simclr_ray.sweep.records import read_sweep
from sweep_records import (
    BUDGET,
    DEFAULTS,
    HEAD,
    OVERRIDES,
    SPACE,
    STRENGTH,
    TEMPERATURE,
    drawn,
    full,
    trial,
    usual,
    written,
)

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_only_trials_at_full_budget_are_ranked(tmp_path: Path) -> None:
    params = drawn(random.Random(0))
    trials = [
        trial("FAIL", params, 10.0, reason="the loss is NaN"),
        trial("PRUNED", params, 99.0),
        full(params, 51.0),
        trial("PRUNED", params, 20.0, 31.0),
        trial("RUNNING", params, 20.0),
        full(params, 52.0),
        trial("PRUNED", params, 20.0, 32.0),
    ]
    records = read_sweep(written(tmp_path / "s", trials))
    assert [found.number for found in records.trials] == [5, 2, 6, 3, 1, 0, 4]
    assert records.best is not None
    assert records.best.run == "trial-0005"
    rows = [re.split(r"  +", line.strip()) for line in table(records).splitlines()]
    assert rows[1][:3] == ["1", "trial-0005", "complete"]
    assert rows[5][0] == "trial-0001"
    assert rows[5][-2:] == ["(99.00)", "2,048"]
    assert rows[6][-1] == "the loss is NaN"
    # 2 x 8192, 2048, 4096 twice, and 2048 of the failed one, instead of 6 x 8192.
    assert cost(records).startswith("28,672 samples seen by the 6 trials that ended, instead of 49,152")
    assert "42% saved, 29% by ASHA, which ended 3" in cost(records)


def chosen(folder: Path, word: str) -> tuple[Recipe, list[str]]:
    """What pretrain makes of the words of a command whose file was saved in `folder`."""
    python, script, file, *rest = shlex.split(word)
    assert (python, script) == ("python", "experiments/pretrain.py")
    return choose_recipe([str(folder / file), *rest], RECIPES)


@pytest.mark.parametrize("name", ["c10", "2nd try", 'a"b\\c', "tau-0.5", "my runs'"])
def test_the_recipe_is_a_file_of_its_own_that_the_commands_name(tmp_path: Path, name: str) -> None:
    overrides = {
        **OVERRIDES,
        "model.head_batchnorm": False,
        "resources.gpus_per_worker": 0.25,
        "model.head_hidden": None,
        "data.mean": [-0.1, 0.2, 0.3],
        "data.train": '-my photos/it\'s "here"',
        "optim.weight_decay": 1e-7,
    }
    storage = tmp_path / "the runs"
    records = read_sweep(written(storage / name, usual(), overrides=overrides, science=overrides | {"train.seed": 0}))
    best = records.best
    assert best is not None
    (tmp_path / f"{recipe_name(records)}.py").write_text(best_recipe(records))
    kept = {key: value for key, value in overrides.items() if not key.startswith(("resources.", "saving."))}
    found = []
    for line in commands(records).splitlines():
        if not line.startswith("#"):
            recipe, rest = chosen(tmp_path, line)
            arguments, config = parse_with_config(Arguments, rest, recipe.config, recipe.doc)
            assert config == quickstart().with_overrides(kept | best.params)
            assert recipe.name == recipe_name(records)
            found.append((arguments.name, arguments.storage))
    assert found == [(f"{name}-best", str(storage)), (best.run, str(storage / name))]
    for words in (f"python experiments/pretrain.py {recipe.name}.py", f"{best.objective:.2f}"):
        assert words in (recipe.doc or "")


@pytest.mark.parametrize("method", [{}, {"method.name": "byol", "method.momentum": 0.9}])
@pytest.mark.parametrize("name", ["my_own", "quickstart"])  # a function of the user's that has the name of ours
def test_the_best_of_a_sweep_of_a_users_own_recipe_needs_it_no_more(name, method, tmp_path: Path) -> None:
    records = read_sweep(written(tmp_path / "s", usual(), recipe=name, science={"train.epochs": 7}))
    assert records.best is not None
    with pytest.raises(BadInput, match=f"has no config.json, and no recipe here is its '{name}'"):
        best_recipe(records)
    trained = quickstart().with_overrides({"train.epochs": 7} | (method or records.best.params))
    (tmp_path / "s" / records.best.run).mkdir()
    (tmp_path / "s" / records.best.run / "config.json").write_text(trained.to_json())
    (tmp_path / "best_of_s.py").write_text(best_recipe(records))
    config = chosen(tmp_path, commands(records).splitlines()[1])[0].config
    assert (science_changes(trained, config), config.data.train) == ({}, trained.data.train)


def test_a_sweep_of_whole_runs_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    records = read_sweep(written(tmp_path / "s", usual(), overrides={"train.epochs": 4}))
    assert "goes on" not in commands(records)
    assert "unmeasured" not in best_recipe(records)


def test_trials_of_other_lengths_count_with_their_own_budgets(tmp_path: Path) -> None:
    trials = [full(DEFAULTS, 50.0), trial("PRUNED", DEFAULTS, 20.0)]
    trials[1].set_user_attr("budget_samples", 2 * BUDGET)
    records = read_sweep(written(tmp_path / "s", trials))
    # 8192 of 8192, and 2048 of 16384.
    assert "10,240 samples seen by the 2 trials that ended, instead of 24,576 at full budget: 58% saved" in cost(
        records
    )


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_seed_will_do_for_the_importances(tmp_path: Path, seed: int) -> None:
    assert isinstance(importances(read_sweep(written(tmp_path / "s", usual(), seed=seed))), Importances)


def test_importances_are_over_the_space_as_it_was_searched(tmp_path: Path) -> None:
    generator, space = random.Random(1), {**TEMPERATURE, **STRENGTH}
    trials = []
    for _ in range(80):
        params = drawn(generator, space)
        tau, strength = params["method.temperature"], params["augment.strength"]
        # The same bend over the same part of both scales; over raw temperatures it would be 20 times shorter.
        part = math.log(tau / 0.05) / math.log(20), (strength - 0.1) / 1.4
        trials.append(full(params, 50 + 10 * sum(min(p, 0.3) for p in part)))
    found = importances(read_sweep(written(tmp_path / "s", trials, space)))
    assert isinstance(found, Importances)
    assert sum(found.parts.values()) == pytest.approx(1, abs=0.2)
    assert found.parts["method.temperature"] == pytest.approx(found.parts["augment.strength"], abs=0.2)


def test_a_setting_that_asha_left_one_value_is_not_called_unimportant(tmp_path: Path) -> None:
    generator = random.Random(0)
    trials = [full({**drawn(generator), "model.head": "mlp"}, 50.0 + at) for at in range(6)]
    trials += [trial("PRUNED", {**drawn(generator), "model.head": "linear"}, 20.0) for _ in range(6)]
    found = importances(read_sweep(written(tmp_path / "s", trials)))
    assert isinstance(found, Importances)
    assert found.unknown == ["model.head"]
    assert set(found.parts) == {"method.temperature", "augment.strength"}


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        (usual(6), "3 complete; fANOVA needs 4"),
        ([full(drawn(random.Random(at)), 50.0) for at in range(5)], "the same objective"),
        ([full(DEFAULTS, 50.0 + at) for at in range(5)], "do not differ in any setting"),
    ],
)
def test_why_there_are_no_importances(tmp_path: Path, trials: list[FrozenTrial], why: str) -> None:
    found = importances(read_sweep(written(tmp_path / "s", trials)))
    assert isinstance(found, str)
    assert why in found


def test_the_surface_is_the_mean_under_a_gaussian_near_a_trial() -> None:
    generator = np.random.default_rng(0)
    points, values, at = generator.random((7, 2)), generator.random(7), generator.random((50, 2))
    bandwidth = 0.25 * 7 ** (-1 / 6)
    found = smoothed(at, points, values)
    for place, height, hidden in zip(at, found.data, np.ma.getmaskarray(found), strict=True):
        distances = [math.dist(place, point) / bandwidth for point in points]
        weights = [math.exp(-(d**2) / 2) for d in distances]
        assert hidden == (min(distances) > 1)
        assert height == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))


DRAWN = {"history", "curves", "importances", "slices", "contours"}


@pytest.mark.parametrize(
    ("space", "trials", "missing"),
    [
        (SPACE, usual(24), set()),
        (TEMPERATURE, usual(12, TEMPERATURE), {"contours"}),
        (HEAD, usual(12, HEAD), {"contours"}),
        ({**STRENGTH, **HEAD}, usual(12, {**STRENGTH, **HEAD}), set()),
        (SPACE, [trial("PRUNED", drawn(random.Random(0)), 20.0)], {"importances", "slices", "contours"}),
        (SPACE, [trial("FAIL", drawn(random.Random(0)), reason="NaN")] * 3, DRAWN),
        (SPACE, [trial("RUNNING", {})], DRAWN),
        (SPACE, [full(DEFAULTS, 50.0)], {"importances", "contours"}),
    ],
)
def test_what_can_be_drawn_is_and_the_rest_is_said(
    tmp_path: Path, space: dict[str, Any], trials: list[FrozenTrial], missing: set[str]
) -> None:
    before = dict(matplotlib.rcParams)
    records = read_sweep(written(tmp_path / "s", trials, space))
    found = plots(records)
    assert dict(matplotlib.rcParams) == before
    assert {plot.name for plot in found} == DRAWN
    for plot in found:
        if plot.name in missing:
            assert plot.png is None
            assert plot.caption.startswith("No ")
        else:
            assert plot.png is not None
            assert plot.png.startswith(b"\x89PNG")
    if records.best is None:
        assert "there is no best config" in findings(records)
        with pytest.raises(BadInput, match="there is no best config yet"):
            best_recipe(records)


def test_the_page_holds_all_it_needs_and_nothing_that_runs(tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script> & <img src=x> $\\frac{"
    trials = [*usual(), trial("FAIL", drawn(random.Random(5)), reason=hostile)]
    page = write_page(read_sweep(written(tmp_path / "a<b>&$c", trials, objective="<b>top</b>$_")))
    text = page.read_bytes().decode()
    assert "<script" not in text
    assert "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;img src=x&gt;" in text
    assert "a<b>" not in text
    assert "<b>top" not in text
    sources = re.findall(r"""(?:src|href)=["']?([^"'>]{1,40})""", text.replace("&lt;img src=x&gt;", ""))
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert {path.name for path in (tmp_path / "a<b>&$c" / "report").iterdir()} == {
        "index.html",
        *(f"{name}.png" for name in DRAWN),
    }


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from simclr_ray.cli.report import main; assert not {'matplotlib', 'optuna'} & set(sys.modules);"
        "main(sys.argv[1:]);"
        "assert not {'matplotlib.pyplot', 'torch', 'ray'} & set(sys.modules)"
    )
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, cwd=EXPERIMENTS, capture_output=True, text=True, timeout=300)


def test_the_command_prints_what_was_found_and_where_the_page_is(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", usual())
    done = report(folder)
    assert (done.returncode, done.stderr) == (0, "")
    says = ("save it as best_of_s.py", "def best_of_s() -> Config:", "best_of_s.py --name s-best")
    for words in ("rank  trial", *says, f"{folder}/report/index.html"):
        assert words in done.stdout


def test_what_is_no_sweep_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no sweep"):
        read_sweep(str(tmp_path / "none"))
    with pytest.raises(BadInput, match="has no trials yet"):
        read_sweep(written(tmp_path / "empty", []))
    begun = Path(written(tmp_path / "begun", []))
    (begun / "study.journal").unlink()
    with pytest.raises(BadInput, match="has no trials yet"):
        read_sweep(str(begun))
    damaged = Path(written(tmp_path / "damaged", usual()))
    (damaged / "sweep.json").write_text('{"recipe": "quick')
    with pytest.raises(BadInput, match="sweep.json is damaged"):
        read_sweep(str(damaged))
    (damaged / "sweep.json").write_text('{"recipe": "quickstart"}')
    with pytest.raises(BadInput, match="sweep.json is damaged"):
        read_sweep(str(damaged))


def test_a_journal_is_read_up_to_a_cut_last_line_and_refused_with_a_broken_one(tmp_path: Path) -> None:
    folder = Path(written(tmp_path / "s", usual(8)))
    journal = folder / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines)[:-20])
    assert len(read_sweep(str(folder)).trials) == 7
    for broken in (b"{\n", b"[]\n", b"\xff\n", b'{"op_code": 99}\n'):
        journal.write_bytes(b"".join([lines[0], broken, *lines[1:]]))
        with pytest.raises(BadInput, match="is broken"):
            read_sweep(str(folder))
    line = [sys.executable, "report.py", str(folder)]
    done = subprocess.run(line, cwd=EXPERIMENTS, capture_output=True, text=True, timeout=100)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
