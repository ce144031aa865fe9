"""Learning rate and weight decay of every step against tables made by hand and closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from simclr_ray.config import Config
from simclr_ray.optim.schedule import learning_rate, peak_lr, rate_at, weight_decay_at


def test_warm_up_is_linear_from_zero_and_the_cosine_ends_at_zero() -> None:
    rates = [learning_rate(step, 2.0, 4, 12) for step in range(13)]
    assert rates[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.0)
    for step in range(4, 13):
        assert rates[step] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 8)))
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_the_peak_scales_with_the_batch() -> None:
    assert peak_lr(0.3, "linear", 4096) == pytest.approx(4.8)  # SimCLR, section 2.2
    assert peak_lr(1.2, "sqrt", 4096) == pytest.approx(0.075 * math.sqrt(4096))  # appendix B.1
    assert peak_lr(1.2, "sqrt", 256) == pytest.approx(0.075 * math.sqrt(256))


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    config = Config().with_overrides({"train.epochs": 2, "optim.warmup_epochs": 10, "train.global_batch": 256})
    assert [rate_at(config, step, 5) for step in (0, 5, 9)] == pytest.approx([0.0, 0.15, 0.27])


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, 1.0, 0, 10) == 1.0


def test_the_rate_ends_at_its_fraction_of_the_peak() -> None:
    changes = {"train.epochs": 4, "optim.warmup_epochs": 1, "train.global_batch": 512, "optim.lr_end_fraction": 0.1}
    config = Config().with_overrides(changes)
    assert [rate_at(config, step, 10) for step in (0, 5, 10, 25, 40)] == pytest.approx([0, 0.3, 0.6, 0.33, 0.06])


@pytest.mark.parametrize(("start", "end"), [(0.04, 0.4), (0.1, 0.0), (0.0, 0.2)])
def test_weight_decay_follows_half_a_cosine_from_the_first_step_to_the_last(start: float, end: float) -> None:
    config = Config().with_overrides(
        {"train.epochs": 4, "optim.weight_decay": start, "optim.weight_decay_end": end, "optim.warmup_epochs": 2}
    )
    found = [weight_decay_at(config, step, 5) for step in range(21)]
    assert (found[0], found[20]) == pytest.approx((start, end))
    assert found[10] == pytest.approx((start + end) / 2)
    for step, value in enumerate(found):
        assert value == pytest.approx(start + (end - start) * math.sin(math.pi * step / 40) ** 2)


def test_weight_decay_without_an_end_is_constant() -> None:
    config = Config().with_overrides({"train.epochs": 4, "optim.weight_decay": 0.3})
    assert {weight_decay_at(config, step, 5) for step in range(21)} == {0.3}
