"""The losses of the other methods against their papers' equations written out; workers' shares add up to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.methods.barlow_twins import barlow_twins_loss
from simclr_ray.methods.byol import byol_loss
from simclr_ray.methods.dino import dino_loss
from simclr_ray.methods.distillation import distillation_loss
from simclr_ray.methods.moco import in_batch_nce, info_nce
from simclr_ray.methods.nnclr import nearest, nnclr_loss
from simclr_ray.methods.simsiam import simsiam_loss
from simclr_ray.methods.supervised import supervised_loss
from simclr_ray.methods.swav import sinkhorn, swav_loss
from simclr_ray.methods.vicreg import vicreg_loss

ROWS = (5, 2, 4)
N, D = sum(ROWS), 3


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other) / (one.norm() * other.norm())


def byol(a: Tensor, b: Tensor) -> Tensor:
    """Equation 2: the squared distance of the normalised vectors, averaged."""
    return sum((a[i] / a[i].norm() - b[i].detach() / b[i].detach().norm()).square().sum() for i in range(N)) / N


def simsiam(a: Tensor, b: Tensor) -> Tensor:
    return sum(-cosine(a[i], b[i].detach()) for i in range(N)) / N


def barlow_twins(a: Tensor, b: Tensor) -> Tensor:
    """Algorithm 1 entry by entry, with the official code's BatchNorm (epsilon 1e-5)."""
    total = a.new_zeros(())
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b))
    for i in range(D):
        for j in range(D):
            c = sum(a[n, i] * b[n, j] for n in range(N)) / N
            total = total + ((1 - c) ** 2 if i == j else 0.005 * c**2)
    return total


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    """Equations 1 to 6, with the official code's mean over dimensions and half sum over views."""
    total = 25 * (a - b).square().mean()
    for z in (a, b):
        total = total + 25 * sum((1 - (z[:, j].var() + 1e-4).sqrt()).clamp(min=0) for j in range(D)) / D / 2
        covariance = torch.cov(z.T)
        total = total + sum(covariance[i, j] ** 2 for i in range(D) for j in range(D) if i != j) / D
    return total


def moco(a: Tensor, b: Tensor) -> Tensor:
    """MoCo, equation 1."""
    total = a.new_zeros(())
    for i in range(N):
        logits = [cosine(a[i], b[i].detach()), *(a[i] / a[i].norm() @ key for key in queue())]
        weights = [(logit / 0.3).exp() for logit in logits]
        total = total - (weights[0] / sum(weights)).log()
    return total / N


def moco_v3(a: Tensor, b: Tensor) -> Tensor:
    """MoCo v3, algorithm 1: ctr."""
    total = a.new_zeros(())
    for i in range(N):
        weights = [(cosine(a[i], b[j].detach()) / 0.3).exp() for j in range(N)]
        total = total - (weights[i] / sum(weights)).log()
    return 2 * 0.3 * total / N


def nnclr(a: Tensor, b: Tensor) -> Tensor:
    """NNCLR, equations 2 and 3: the neighbours of `a` among the queue against all predictions `b`."""
    total = a.new_zeros(()) + 0 * a.sum()
    for i in range(N):
        neighbour = max(queue(), key=lambda key: float(cosine(a[i].detach(), key)))
        weights = [(cosine(neighbour, b[k]) / 0.3).exp() for k in range(N)]
        total = total - (weights[i] / sum(weights)).log()
    return total / N


def swav(a: Tensor, b: Tensor, earlier: Tensor | None = None) -> Tensor:
    """Equation 2 and algorithm 1: the codes by alternating normalisation of all rows and columns.

    Rows of `earlier` batches join the matrix, for each view; only codes of the batch enter the loss (section 3.1).
    """
    total = a.new_zeros(())
    for view, (one, other) in enumerate(((a, b), (b, a))):
        scores = one.detach() if earlier is None else torch.cat([earlier[view], one.detach()])
        code = (scores / 0.5).exp()
        code = code / code.sum()
        for _ in range(3):
            code = code / code.sum(dim=0, keepdim=True) / D
            code = code / code.sum(dim=1, keepdim=True) / len(code)
        code = (code * len(code))[-N:]
        for i in range(N):
            weights = (other[i] / 0.1).exp()
            total = total - sum(code[i, j] * (weights[j] / weights.sum()).log() for j in range(D))
    return total / 2 / N


def dino(a: Tensor, b: Tensor) -> Tensor:
    """Equation 3 with the centre of equation 4; here the teacher's scores are the student's, without gradient."""
    total = a.new_zeros(())
    for one, other in ((a, b), (b, a)):
        for i in range(N):
            target = ((one[i].detach() - queue()[0]) / 0.4).exp()
            weights = (other[i] / 0.7).exp()
            total = total - (target / target.sum() * (weights / weights.sum()).log()).sum()
    return total / 2 / N


def supervised(a: Tensor, b: Tensor) -> Tensor:
    """Cross-entropy with smoothed targets: 0.1 of the weight is spread over all classes."""
    total = a.new_zeros(())
    for i in range(N):
        for j in range(D):
            target = 0.1 / D + 0.9 * float(j == labels()[i])
            total = total - target * (a[i, j].exp() / a[i].exp().sum()).log()
    return total / N + 0 * b.sum()


def distillation(a: Tensor, b: Tensor) -> Tensor:
    """SimCLR v2, equation 2, class by class; its sum over images is a mean here."""
    total = a.new_zeros(())
    for i in range(N):
        scores = [sum((z[i, y] / 0.4).exp() for y in range(D)) for z in (a, b.detach())]
        for y in range(D):
            p_student, p_teacher = (a[i, y] / 0.4).exp() / scores[0], (b[i, y].detach() / 0.4).exp() / scores[1]
            total = total - p_teacher * p_student.log()
    return total / N + 0 * b.sum()


def labels() -> Tensor:
    return torch.arange(N) % D


def earlier_scores() -> Tensor:
    """Of both views; three workers cannot share 5 rows equally."""
    return torch.stack([queue()[:5], -queue()[1:]])


def queue() -> Tensor:
    drawn = torch.randn(6, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def own_supervised_loss(a: Tensor, b: Tensor, **rows: Any) -> Tensor:
    """With the labels of this worker's rows; `b` has no part in it."""
    first = sum(ROWS[: collective.rank()]) if rows else 0
    own = labels()[first : first + len(a)]
    return supervised_loss(a, own, label_smoothing=0.1, **rows) + 0 * b.sum()


Loss = Callable[..., Tensor]
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "byol": (byol_loss, byol),
    "simsiam": (simsiam_loss, simsiam),
    "barlow_twins": (barlow_twins_loss, barlow_twins),
    "vicreg": (vicreg_loss, vicreg),
    "moco": (lambda a, b, **rows: info_nce(a, b, queue(), 0.3, **rows), moco),
    "nnclr": (lambda a, b, **rows: nnclr_loss(nearest(a, queue()), b, 0.3, **rows) + 0 * a.sum(), nnclr),
    "swav": (lambda a, b, **rows: swav_loss([a, b], 0.1, epsilon=0.5, **rows), swav),
    "swav_queue": (
        lambda a, b, **rows: swav_loss([a, b], 0.1, epsilon=0.5, earlier=earlier_scores(), **rows),
        lambda a, b: swav(a, b, earlier_scores()),
    ),
    "dino": (lambda a, b, **rows: dino_loss([a, b], [a, b], queue()[0], 0.7, 0.4, **rows), dino),
    "supervised": (lambda a, b, **rows: own_supervised_loss(a, b, **rows), supervised),
    "distillation": (lambda a, b, **rows: distillation_loss(a, b, 0.4, **rows) + 0 * b.sum(), distillation),
    "moco_v3": (lambda a, b, **rows: in_batch_nce(a, b, 0.3, **rows), moco_v3),
}


def views(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """With `scale` small the standard deviations lie below VICReg's hinge, with a large one above it."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(N, D, generator=generator, dtype=torch.float64).mul_(scale) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_the_definition(name: str, scale: float) -> None:
    loss, definition = LOSSES[name]
    a, b = views(scale)
    got = loss(a, b)
    got.backward()
    c, d = views(scale)
    expected = definition(c, d)
    expected.backward()
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close((a.grad, b.grad), (c.grad, d.grad), rtol=1e-9, atol=1e-12)


def own_shares() -> dict[str, tuple[Tensor, list[Tensor | None]]]:
    """For each loss the sum of the workers' shares, and this worker's gradients."""
    first = sum(ROWS[: collective.rank()])
    own = slice(first, first + ROWS[collective.rank()])
    found = {}
    for name, (loss, _) in LOSSES.items():
        a, b = (view.detach()[own].clone().requires_grad_() for view in views())
        share = loss(a, b, rows_per_worker=ROWS)
        share.backward()
        found[name] = (collective.sum_over_workers(share.detach().clone()), [a.grad, b.grad])
    return found


def test_shares_of_unequal_workers_add_up_and_their_gradients_are_the_global_losss() -> None:
    results = run_workers(len(ROWS), own_shares)
    for name, (loss, _) in LOSSES.items():
        a, b = views()
        whole = loss(a, b)
        whole.backward()
        for rank, found in enumerate(results):
            own = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
            total, gradients = found[name]
            torch.testing.assert_close(total, whole.detach(), rtol=1e-11, atol=1e-12, msg=name)
            for got, view in zip(gradients, (a, b), strict=True):
                expected = None if view.grad is None else view.grad[own]
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=name)


def test_local_views_are_predicted_from_the_first_two() -> None:
    """SwAV: mean over all ordered pairs of different views whose code is of the first two; DINO: the teacher's two."""
    a, b = (view.detach() for view in views())
    c = (a - 0.5 * b).requires_grad_()
    codes = [sinkhorn(view, 0.5, 3) for view in (a, b)]
    targets = [((view - queue()[0]) / 0.4).softmax(dim=1) for view in (a, b)]
    swav_terms, dino_terms = [], []
    for i, other in ((0, b), (0, c), (1, a), (1, c)):
        swav_terms.append(-(codes[i] * (other / 0.1).log_softmax(dim=1)).sum(dim=1).mean())
        dino_terms.append(-(targets[i] * (other / 0.7).log_softmax(dim=1)).sum(dim=1).mean())
    got = swav_loss([a, b, c], 0.1, epsilon=0.5)
    torch.testing.assert_close(got, sum(swav_terms) / 4, rtol=1e-11, atol=1e-12)
    got = dino_loss([a, b, c], [a, b], queue()[0], 0.7, 0.4)
    torch.testing.assert_close(got, sum(dino_terms) / 4, rtol=1e-11, atol=1e-12)


def test_a_single_dimension_far_from_collapse_has_no_variance_term() -> None:
    a = views(100.0)[0].detach()
    assert float(vicreg_loss(a, a, invariance=25.0, variance=25.0, covariance=0.0)) == 0.0


def test_chance_level_of_moco_is_the_logarithm_of_the_keys() -> None:
    a, b = (view.detach() for view in views())
    assert float(info_nce(a, b, queue(), 1e9)) == pytest.approx(math.log(1 + len(queue())))


def test_codes_share_the_prototypes_equally() -> None:
    scores = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = sinkhorn(scores, epsilon=0.5, iterations=50)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 16.0, dtype=torch.float64))
