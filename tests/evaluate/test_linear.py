"""The linear classifier separates linear classes, follows its stated arithmetic and depends on its seed alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from simclr_ray.evaluate.linear import (
    CIFAR_PROBE,
    IMAGENET_PROBE,
    ProbeConfig,
    probe_config,
    train_probe,
)
from simclr_ray.evaluate.score import accuracy, predict

SHORT = ProbeConfig(epochs=20, batch=64, lr_per_256=0.5, momentum=0.9, weight_decay=0.0)


def clusters(n=300, d=10, classes=4, seed=0):
    """Gaussian clusters of unit width, seven apart on average: a linear classifier separates them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(classes, d, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(0, classes, (n,), generator=generator)
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def test_separable_clusters_are_separated():
    features, labels = clusters()
    unseen, unseen_labels = clusters(seed=1)
    right, wrong = (predict(unseen, [features], known, SHORT, classes=4, seed=0) for known in (labels, labels.roll(1)))
    assert accuracy(right, unseen_labels).top1 > 98
    assert accuracy(wrong, unseen_labels).top1 < 80


def test_one_batch_an_epoch_is_nesterov_descent_with_a_cosine():
    features, labels = clusters(n=32)
    config = ProbeConfig(epochs=5, batch=4096, lr_per_256=0.4, momentum=0.9, weight_decay=0.01)
    probe = train_probe([features], labels, classes=4, config=config, seed=0)
    wide, weight, velocity = features.double(), torch.zeros(4, 10, dtype=torch.float64), torch.zeros(4, 10).double()
    bias, bias_velocity = torch.zeros(4).double(), torch.zeros(4).double()
    for step in range(5):
        lr = 0.4 * 32 / 256 * (1 + math.cos(math.pi * step / 5)) / 2  # the batch shrinks to the 32 rows
        error = ((wide @ weight.T + bias).softmax(1) - F.one_hot(labels, 4)) / 32
        gradient, bias_gradient = error.T @ wide + 0.01 * weight, error.sum(0) + 0.01 * bias
        velocity, bias_velocity = 0.9 * velocity + gradient, 0.9 * bias_velocity + bias_gradient
        weight = weight - lr * (gradient + 0.9 * velocity)
        bias = bias - lr * (bias_gradient + 0.9 * bias_velocity)
    torch.testing.assert_close(probe.weight.detach().double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe.bias.detach().double(), bias, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_and_nothing_else_does():
    features, labels = clusters()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = train_probe([features], labels, classes=4, config=SHORT, seed=0).weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one, train_probe([features], labels, classes=4, config=SHORT, seed=0).weight)
    assert not torch.equal(one, train_probe([features], labels, classes=4, config=SHORT, seed=1).weight)


def test_epochs_take_the_views_in_turn():
    features, labels = clusters(n=32)
    config = ProbeConfig(epochs=1, batch=32, lr_per_256=0.4, momentum=0.9, weight_decay=0.0)
    first = train_probe([features], labels, classes=4, config=config, seed=0)
    both = train_probe([features, -features], labels, classes=4, config=config, seed=0)
    assert torch.equal(first.weight, both.weight), "the first epoch takes the first view"
    two = ProbeConfig(epochs=2, batch=32, lr_per_256=0.4, momentum=0.9, weight_decay=0.0)
    same = train_probe([features, features], labels, classes=4, config=two, seed=0)
    turned = train_probe([features, -features], labels, classes=4, config=two, seed=0)
    assert not torch.equal(same.weight, turned.weight)


@pytest.mark.parametrize(("rows", "config"), [(50_000, CIFAR_PROBE), (1_281_167, IMAGENET_PROBE)])
def test_the_papers_parameters(rows, config):
    assert probe_config(rows) == config
    assert (config.epochs, config.batch) == ((100, 512) if rows == 50_000 else (90, 4096))
