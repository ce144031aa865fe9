"""Logistic regression against scikit-learn's and its definition; its strength is chosen on held-out rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simclr_ray.evaluate.logistic import GRID, choose_l2, fit_logistic

CLASSES = 4


def features(n: int = 150, d: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features as an encoder's: positive, of very different means and scales; overlapping classes of unequal size."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(CLASSES, n, p=[0.55, 0.25, 0.15, 0.05])
    labels[:CLASSES] = range(CLASSES)
    centres = np.random.default_rng(9).normal(size=(CLASSES, d))
    h = np.maximum(centres[labels] + 1.5 * generator.normal(size=(n, d)) + 3, 0) * np.geomspace(0.1, 5, d)
    return torch.from_numpy(h).float(), torch.from_numpy(labels)


def objective(weight: np.ndarray, bias: np.ndarray, h: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """The definition, image by image."""
    total = l2 / 2 * sum(w**2 for row in weight.tolist() for w in row)
    for x, label in zip(h, labels, strict=True):
        logits = [float(w @ x + b) for w, b in zip(weight, bias, strict=True)]
        total += np.log(sum(np.exp(logit - logits[label]) for logit in logits))
    return total


def sklearns(h: torch.Tensor, labels: torch.Tensor, l2: float) -> LogisticRegression:
    newton = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-9, max_iter=300)
    return newton.fit(h.double().numpy(), labels.numpy())


@pytest.mark.parametrize("l2", [1e-2, 1.0, 1e2, 1e5])
def test_the_classifier_is_scikit_learns(l2: float) -> None:
    h, labels = features()
    found, reference = fit_logistic(h, labels, classes=CLASSES, l2=l2), sklearns(h, labels, l2)
    weight, bias = (value.detach().numpy() for value in (found.weight, found.bias))
    x, y = h.double().numpy(), labels.numpy()
    value, best = (objective(w, b, x, y, l2) for w, b in ((weight, bias), (reference.coef_, reference.intercept_)))
    assert value == pytest.approx(best, rel=1e-6)
    unseen, unseen_labels = features(seed=1)
    with torch.no_grad():
        accuracy = float((found(unseen.double()).argmax(dim=1) == unseen_labels).double().mean())
    assert accuracy == reference.score(unseen.double().numpy(), unseen_labels.numpy())
    if l2 >= 1:  # below, the minimum is too flat for equal weights
        np.testing.assert_allclose(weight, reference.coef_, rtol=1e-2, atol=1e-4 * np.abs(reference.coef_).max())


def test_at_the_minimum_the_gradient_of_the_definition_vanishes() -> None:
    h, labels = features()
    found = fit_logistic(h, labels, classes=CLASSES, l2=3.0)
    x, targets = h.double().numpy(), np.eye(CLASSES)[labels.numpy()]
    weight, bias = (value.detach().numpy() for value in (found.weight, found.bias))
    odds = np.exp(x @ weight.T + bias)
    error = odds / odds.sum(axis=1, keepdims=True) - targets
    assert np.abs(error.T @ x + 3.0 * weight).max() < 1e-2 * np.abs(targets.T @ x).max() / len(x)
    assert np.abs(error.sum(axis=0)).max() < 1e-3, "the bias is not regularised"


def test_where_the_fit_starts_decides_nothing() -> None:
    h, labels = features()
    start = fit_logistic(h, labels, classes=CLASSES, l2=100.0)
    cold, warm = (fit_logistic(h, labels, classes=CLASSES, l2=0.5, start=s) for s in (None, start))
    torch.testing.assert_close(cold.weight, warm.weight, rtol=1e-2, atol=1e-4)
    again = fit_logistic(h, labels, classes=CLASSES, l2=0.5)
    assert torch.equal(cold.weight, again.weight)


def test_the_strength_is_the_one_that_serves_the_rows_held_out_best() -> None:
    h, labels = features(n=200)
    held_out = torch.arange(200) % 5 == 4
    grid = (1e-3, 1e-1, 1e1, 1e3, 1e5)
    hits = {}
    for l2 in grid:
        predicted = sklearns(h[~held_out], labels[~held_out], l2).predict(h[held_out].double().numpy())
        hits[l2] = int((predicted == labels[held_out].numpy()).sum())
    strongest = max(l2 for l2 in grid if hits[l2] == max(hits.values()))
    assert len(set(hits.values())) > 2, "the case tells the strengths apart"
    assert choose_l2(h, labels, held_out, classes=CLASSES, grid=grid) == strongest


def test_of_equally_good_strengths_the_strongest_is_taken() -> None:
    h = torch.tensor([[0.0], [1.0]]).repeat(10, 1)
    labels = torch.tensor([0, 1]).repeat(10)
    assert choose_l2(h, labels, torch.arange(20) < 6, classes=2, grid=(0.01, 0.1, 1.0)) == 1.0


def test_the_grid_is_the_papers() -> None:
    np.testing.assert_allclose(GRID, np.logspace(-6, 5, 45))
