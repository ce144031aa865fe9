"""The check during training, fitted to the data: a recipe's check adapts to them, one that the user set does not."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any

from simclr_ray.config import LABELLED, BadInput, Config, EvaluateConfig
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.labels import require_same_classes

NOTHING_UNSEEN = (
    "{method} learns the labels of all of {source}, so an accuracy on some of its images says nothing: name other "
    "labelled images by --{flag}"
)
NO_CHECK: dict[str, Any] = {"every_epochs": 0, "keep_best": False, "patience": None}


def fitted_checks(
    config: Config,
    requested: Set[str],
    bank: Dataset,
    open_test: Callable[[str], Dataset],
    *,
    learned: bool = False,
) -> tuple[Config, Dataset | None, str]:
    """The config with a check that its data allow, the test set, and a line about what was changed, or "".

    `requested`: the dotted keys that the user set. If evaluate.test is not among them, a test set with other classes
    than the `bank` is replaced by rows held out of the bank. If no evaluate.* is, a method that needs labels is
    replaced by rankme, and there is no check where the bank is too small. Otherwise each of these is BadInput.
    `learned`: the method is trained on the bank's labels, so what is held out of it is nothing unseen; alike.
    """
    check, source, reason = config.evaluate, config.evaluate.train or config.data.train, ""
    if check.method != "rankme" and not bank.labelled:
        if _check_requested(requested):
            raise BadInput(
                f"evaluate.method {check.method} needs labels: {source} has images without; use --evaluate.method "
                "rankme, or name labelled images by --evaluate.train"
            )
        check, reason = replace(check, method="rankme"), "it has images without labels"
    test = _test_set(check, bank, open_test, named="evaluate.test" in requested)
    if check.test and not test:
        check, reason = replace(check, test=None), reason or f"its classes are not those of {check.test}"
    if learned and not test and check.method != "rankme":
        if _check_requested(requested):
            raise BadInput(NOTHING_UNSEEN.format(method=config.method.name, source=source, flag="evaluate.test"))
        check, reason = replace(check, method="rankme"), f"{config.method.name} learns the labels of all of it"
    if not test and not first_held_out(check, bank):
        if _check_requested(requested):
            raise BadInput(
                f"evaluate.every_epochs {check.every_epochs}: {source} has too few images to hold any out; name a test "
                "set by --evaluate.test, or use --evaluate.every-epochs 0"
            )
        check, reason = (
            replace(check, **NO_CHECK),
            "it has too few images to hold any out",
        )
    measured = f"{check.method} on images held out of {source}" if check.every_epochs else f"none on {source}"
    return replace(config, evaluate=check), test, f"check: {measured}, because {reason}" if reason else ""


def learns_from(config: Config, bank: Dataset, dataset: Dataset) -> bool:
    """Whether training on `dataset` is on the labels of the bank."""
    return isinstance(config.method, LABELLED) and bank.fingerprint == dataset.fingerprint


def allowing_for_fit(config: Config, earlier: Config, requested: Set[str]) -> Config:
    """`config` with what `fitted_checks` may have changed at the first start, whose config is `earlier`."""
    if _check_requested(requested):
        return config
    before = earlier.flat()
    fitted = {"evaluate.method": "rankme"} if before["evaluate.method"] == "rankme" else {}
    if before["evaluate.every_epochs"] == 0:
        fitted |= {f"evaluate.{key}": value for key, value in NO_CHECK.items()}
    return config.with_overrides(fitted)


def first_held_out(settings: EvaluateConfig, bank: Dataset) -> int:
    """Without a test set: the first row held out of `bank`, where a slice starts; 0: the bank is too small."""
    held = min(settings.test_rows, bank.rows // 2)
    return (bank.rows - held) // bank.slice_rows * bank.slice_rows


def _check_requested(requested: Set[str]) -> bool:
    return any(key.startswith("evaluate.") and not key.startswith("evaluate.probe") for key in requested)


def _test_set(
    check: EvaluateConfig, bank: Dataset, open_test: Callable[[str], Dataset], *, named: bool
) -> Dataset | None:
    """The test set; None if there is none, or if a recipe names one with other classes."""
    if not check.test or not (named or bank.labelled):
        return None
    try:
        test = open_test(check.test)
        if named and check.method != "rankme":
            require_same_classes(bank, test)
    except BadInput as error:
        raise BadInput(f"evaluate.test {check.test}: {error}") from None
    return test if named or (test.labelled and test.classes == bank.classes) else None
