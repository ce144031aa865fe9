"""The paper's ablations: configs that differ in what they claim to, and the table of what they reached."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from simclr_ray.config import BadInput
from simclr_ray.recipes import RECIPES, quickstart
from simclr_ray.report.ablation import ablation_cells, ablation_findings, results, verdicts
from simclr_ray.report.comparison import half_interval
from simclr_ray.report.page import write_page
from simclr_ray.sweep.ablations import ABLATIONS, FIGURE_5, OFF, OPERATIONS, ablation, points_of, space_of
from simclr_ray.sweep.records import SweepRecords, read_sweep
from simclr_ray.sweep.settings import SweepSettings
from sweep_records import written

CONFIG = quickstart()


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("recipe", ["quickstart", "cifar10_rn18_200ep", "imagenet_rn50_100ep"])
def test_points_are_different_configs_of_what_the_ablation_is_about(name: str, recipe: str) -> None:
    config = RECIPES[recipe]()
    points = points_of(name, config)
    assert len({point.label for point in points}) == len(points)
    configs = [config.with_overrides(point.values) for point in points]
    assert len({one.to_json() for one in configs}) == len(points)
    settings = SweepSettings(
        recipe=recipe, defaults=config, space=space_of(points, config), ablation=name, points=tuple(points)
    )
    for number, one in enumerate(configs):
        given = settings.given(number, config)
        assert given is not None
        assert given.keys() == settings.space.keys()
        assert config.with_overrides(given) == one, "a trial has all its values, the recipe's own included"
        assert settings.given(number + len(points), config) == given
        assert settings.seed_of(number + len(points), config) == {"train.seed": config.train.seed + 1}
    known = {point.label for point in points}
    compared = ABLATIONS[name]
    assert {*compared.order, *([compared.best] if compared.best else [])} <= known


def test_figure_5_has_every_operation_alone_and_every_pair() -> None:
    points = {point.label: point for point in points_of("augmentation", CONFIG)}
    assert len(points) == 7 + 21
    assert [len(row) for row in FIGURE_5] == [7, 6, 5, 4, 3, 2, 1]
    assert (points["crop + colour"].paper, points["colour"].paper, points["blur + rotate"].paper) == (56.3, 18.8, 6.7)
    assert points["crop + colour"].values == OFF | OPERATIONS["crop"] | OPERATIONS["colour"]
    alone = CONFIG.with_overrides(points["noise"].values).augment
    on = {name: value for name, value in asdict(alone).items() if name.endswith("_p") and value}
    assert on == {"noise_p": 1.0}
    assert alone.crop_min == alone.crop_max == 1
    assert alone.second_plain


@pytest.mark.parametrize("recipe", ["imagenet_byol_1000ep", "imagenet_swav_800ep", "imagenet_dino_rn50_100ep"])
def test_views_of_other_methods_recipes_are_compared_without_what_simclrs_have_not(recipe: str) -> None:
    config = RECIPES[recipe]()
    for point in points_of("augmentation", config):
        views = config.with_overrides(point.values).augment
        assert (views.second_plain, views.local_views, views.second_blur_p, views.saturation) == (True, 0, None, None)
    for point in points_of("strength", config):
        views = config.with_overrides(point.values).augment
        assert (views.saturation, views.second_blur_p, views.local_blur_p) == (None, None, None), point.label


def test_a_batch_that_needs_passes_keeps_them() -> None:
    config = CONFIG.with_overrides({"train.pass_size": 64})
    sizes = [config.with_overrides(point.values).train.pass_size for point in points_of("batch", config)]
    assert sizes == [64] * 6


def test_both_rules_give_the_recipes_rate_at_its_batch() -> None:
    points = {point.label: CONFIG.with_overrides(point.values) for point in points_of("batch", CONFIG)}
    assert list(points) == [f"{batch}, {rule}" for batch in (64, 128, 256) for rule in ("linear", "sqrt")]
    peak = {
        label: one.optim.lr_per_256
        * (
            one.train.global_batch / 256
            if one.optim.lr_scaling == "linear"
            else math.sqrt(one.train.global_batch / 256)
        )
        for label, one in points.items()
    }
    assert peak["256, linear"] == peak["256, sqrt"] == CONFIG.optim.lr_per_256
    assert peak["64, linear"] == pytest.approx(peak["256, linear"] / 4)
    assert peak["64, sqrt"] == pytest.approx(peak["256, sqrt"] / 2)


def test_what_is_no_ablation_is_named() -> None:
    with pytest.raises(BadInput, match=r"no ablation is called 'heads'.*head"):
        ablation("heads")
    odd = CONFIG.with_overrides({"train.epochs": 6})
    with pytest.raises(BadInput, match=r"a quarter of --train.epochs: 6 is no multiple of 4"):
        points_of("epochs", odd)
    with pytest.raises(BadInput, match="temperature"):
        points_of("temperature", RECIPES["cifar10_barlow_twins_200ep"]())


def recorded(folder: Path, reached: dict[tuple[str, int], tuple[float, float]]) -> SweepRecords:
    """The ablation `head` with (h, z) of each (head, seed) in `reached`; other trials failed."""
    points, heads = points_of("head", CONFIG), ["none", "linear", "mlp"]
    trials: list[FrozenTrial] = []
    for key in ((head, seed) for seed in (0, 1) for head in heads):
        trials.append(
            create_trial(
                state=TrialState.COMPLETE if key in reached else TrialState.FAIL,
                value=reached[key][0] if key in reached else None,
                params={"model.head": key[0]},
                distributions={"model.head": CategoricalDistribution(heads)},
                user_attrs={"reason": "it\nfailed"},
            )
        )
    space, compared = {"model.head": {"choices": heads}}, [asdict(point) for point in points]
    written(folder, trials, space, ablation="head", points=compared)
    for number, found in enumerate(trials):
        z = reached.get((found.params["model.head"], number // 3), (0, None))[1]
        run = folder / f"trial-{number:04d}"
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps({"step": 8, **({"z_knn_top1": z} if z else {})}) + "\n")
    return read_sweep(str(folder))


REACHED = {
    ("none", 0): (40.0, 40.0),
    ("linear", 0): (42.0, 39.0),
    ("mlp", 0): (45.0, 38.0),
    ("none", 1): (41.0, 41.0),
    ("linear", 1): (44.0, 40.0),
    ("mlp", 1): (43.0, 39.0),
}


def test_seeds_are_one_row_beside_the_papers(tmp_path: Path) -> None:
    records = recorded(tmp_path / "a", REACHED)
    head, *rows = ablation_cells(records)
    assert head == ["Projection head", "kNN top-1 (%)", "of z", "runs", "paper"]
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("mlp", "2", "66.6"),
        ("linear", "2", "65.6"),
        ("none", "2", "60.6"),
    ]
    assert rows[0][1:3] == [f"44.00 ± {half_interval([45, 43]):.2f}", f"38.50 ± {half_interval([38, 39]):.2f}"]
    assert list(verdicts(records)) == [
        "mlp above linear: yes, by +1.00",
        "linear above none: yes, by +2.50",
        "h above z with the head linear: yes, by +3.50",
        "h above z with the head mlp: yes, by +5.50",
    ]


def test_an_order_that_is_not_the_papers_is_said(tmp_path: Path) -> None:
    records = recorded(tmp_path / "a", REACHED | {("mlp", 0): (30.0, 38.0), ("mlp", 1): (31.0, 38.0)})
    assert "mlp above linear: no, by -12.50" in ablation_findings(records)


def test_nothing_is_said_of_an_order_before_all_have_ended(tmp_path: Path) -> None:
    missing = {key: value for key, value in REACHED.items() if key[0] != "linear"}
    records = recorded(tmp_path / "a", missing)
    assert not list(verdicts(records))
    found = ablation_findings(records)
    assert "4 of 30 runs complete" in found
    assert "trial-0001 failed: it failed" in found
    assert [result.mean for result in results(records)] == [40.5, None, 44.0]


@pytest.mark.parametrize("reached", [REACHED, {}], ids=["complete", "failed"])
def test_its_page_holds_table_and_figure(tmp_path: Path, reached: dict) -> None:
    page = write_page(recorded(tmp_path / "a", reached)).read_bytes().decode()
    assert "<h1>Ablation a</h1>" in page
    assert "Projection head" in page
    assert ("data:image/png" in page) == bool(reached)
    assert ("linear above none: yes" in page) == bool(reached)
    assert ("No run is complete yet." in page) != bool(reached)
