"""The check during training: a recipe's adapts to the data, the user's is an error where they do not allow it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import pytest

from simclr_ray.cli.command import given_keys
from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.fitted import allowing_for_fit, fitted_checks, learns_from
from small_runs import synthetic_dataset

RECIPE = Config().with_overrides(
    {"data.train": "photos", "evaluate.every_epochs": 4, "evaluate.test": "synthetic:64:test"}
)
DATA = frozenset({"data.train"})


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 64)


@pytest.fixture(scope="module")
def flat(synthetic: Dataset) -> Dataset:
    return replace(synthetic, labelled=False, classes=None)


@pytest.fixture(scope="module")
def cats(synthetic: Dataset) -> Dataset:
    return replace(synthetic, classes=("cat", "dog"))


def fitted(bank: Dataset, test: Dataset, requested: Set[str] = DATA, **changes: object) -> tuple[Config, bool, str]:
    """The fitted config, whether it has a test set, and the line."""
    config = RECIPE.with_overrides({key.replace("__", "."): value for key, value in changes.items()})
    found, test_set, line = fitted_checks(config, requested, bank, lambda _: test)
    assert (found.evaluate.test is not None) == (test_set is not None)
    return found, test_set is not None, line


def unreachable(source: str) -> Dataset:
    raise BadInput("no network")


def test_a_check_that_the_data_allow_stays(synthetic: Dataset) -> None:
    assert fitted(synthetic, synthetic) == (RECIPE, True, "")


def test_a_recipes_check_adapts_to_images_without_labels(flat: Dataset) -> None:
    config, test, line = fitted_checks(RECIPE, DATA, flat, unreachable)
    assert config == RECIPE.with_overrides({"evaluate.method": "rankme", "evaluate.test": None})
    assert test is None
    assert line == "check: rankme on images held out of photos, because it has images without labels"
    assert fitted_checks(RECIPE, DATA | {"evaluate.probe"}, flat, unreachable)[0] == config, "a probe is no check"


def test_a_recipes_test_set_of_other_classes_gives_way_to_images_held_out(
    cats: Dataset, synthetic: Dataset, flat: Dataset
) -> None:
    config, has_test, line = fitted(cats, synthetic)
    assert (config, has_test) == (RECIPE.with_overrides({"evaluate.test": None}), False)
    assert line == "check: knn on images held out of photos, because its classes are not those of synthetic:64:test"
    requested = {"evaluate.every_epochs", "evaluate.method"}
    assert fitted(cats, synthetic, requested)[1] is False, "it still is the recipe's"
    assert fitted(flat, synthetic, requested, evaluate__method="rankme")[1] is False
    assert fitted(replace(cats, classes=None), synthetic)[1] is False, "who knows"


def test_a_recipes_check_is_off_where_nothing_can_be_held_out(cats: Dataset, synthetic: Dataset) -> None:
    few = replace(cats, rows=14)
    config, _, line = fitted(few, synthetic)
    assert config == RECIPE.with_overrides({"evaluate.test": None, "evaluate.every_epochs": 0})
    assert line == "check: none on photos, because it has too few images to hold any out"
    with pytest.raises(BadInput, match="evaluate.every_epochs 4: photos has too few images to hold any out"):
        fitted(few, synthetic, {"evaluate.every_epochs"})
    assert fitted(replace(synthetic, rows=14), synthetic) == (RECIPE, True, ""), "the test set suffices"


def test_a_check_that_the_user_set_is_an_error_where_labels_are_missing(flat: Dataset, synthetic: Dataset) -> None:
    says = "evaluate.method knn needs labels: photos has images without; use --evaluate.method rankme, or name "
    for requested in ({"evaluate.method"}, {"evaluate.every_epochs"}, {"evaluate.test"}, {"evaluate.neighbours"}):
        with pytest.raises(BadInput, match=says + "labelled images by --evaluate.train"):
            fitted(flat, synthetic, requested)
    with pytest.raises(BadInput, match="needs labels: more has images without"):
        fitted(flat, synthetic, {"evaluate.train"}, evaluate__train="more")


def test_a_test_set_that_the_user_named_is_used_or_refused(cats: Dataset, synthetic: Dataset, flat: Dataset) -> None:
    named = {"evaluate.test"}
    with pytest.raises(BadInput, match="evaluate.test synthetic:64:test: the 2 classes of .* are not the 10 of"):
        fitted(cats, synthetic, named)
    with pytest.raises(BadInput, match="evaluate.test synthetic:64:test: .* without labels"):
        fitted(synthetic, flat, named)
    with pytest.raises(BadInput, match="evaluate.test synthetic:64:test: no network"):
        fitted_checks(RECIPE, DATA, synthetic, unreachable)
    assert fitted(replace(synthetic, classes=None), synthetic, named)[1], "not every source names its classes"
    assert fitted(flat, flat, named, evaluate__method="rankme")[1:] == (True, ""), "rankme needs no labels"


def test_no_image_whose_label_is_learned_is_held_out_of_the_training_set(synthetic: Dataset, cats: Dataset) -> None:
    recipe = RECIPE.with_overrides({"method.name": "supervised", "evaluate.test": None})
    assert learns_from(recipe, synthetic, synthetic)
    assert not learns_from(RECIPE, synthetic, synthetic)
    assert not learns_from(recipe, replace(synthetic, fingerprint="other"), synthetic)
    config, test, line = fitted_checks(recipe, DATA, synthetic, unreachable, learned=True)
    assert config == recipe.with_overrides({"evaluate.method": "rankme"})
    assert test is None
    assert line.endswith("because supervised learns the labels of all of it")
    with pytest.raises(BadInput, match="supervised learns the labels of all of photos.*by --evaluate.test"):
        fitted_checks(recipe, {"evaluate.method"}, synthetic, unreachable, learned=True)
    tested = recipe.with_overrides({"evaluate.test": "synthetic:64:test"})
    assert fitted_checks(tested, DATA, synthetic, lambda _: synthetic, learned=True)[0] == tested


def test_a_fitted_run_goes_on_under_the_command_that_began_it(flat: Dataset, cats: Dataset) -> None:
    for bank in (flat, replace(cats, rows=14)):
        began, _, _ = fitted(bank, flat)
        assert allowing_for_fit(RECIPE, began, DATA).flat() == began.flat() | {"evaluate.test": "synthetic:64:test"}
        assert allowing_for_fit(RECIPE, began, {"evaluate.method"}) == RECIPE
    strict = RECIPE.with_overrides({"evaluate.keep_best": True, "evaluate.patience": 3, "evaluate.test": None})
    began, _, _ = fitted(replace(cats, rows=14), flat, evaluate__keep_best=True, evaluate__patience=3)
    assert allowing_for_fit(strict, began, DATA) == began
    assert allowing_for_fit(RECIPE, RECIPE, DATA) == RECIPE


def test_the_settings_that_a_command_line_names() -> None:
    line = ["--data.train", "--evaluate.every-epochs=2", "--evaluate.test_rows", "5", "evaluate.method", "--name", "x"]
    assert given_keys(line) == {"data.train", "evaluate.every_epochs", "evaluate.test_rows"}
