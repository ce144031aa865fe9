"""SwAV's queue from step to step, against a list of all batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_ray.config import BadInput, SwAVConfig
from simclr_ray.methods.build import build_method
from simclr_ray.methods.method import Method, Progress
from simclr_ray.methods.swav import sinkhorn, swav_loss
from small_runs import TINY

BATCH, DIM, K = 4, 3, 5


def method(queue: int, queue_epochs: float) -> Method:
    settings = SwAVConfig(prototypes=K, epsilon=0.5, queue=queue, queue_epochs=queue_epochs)
    return build_method(replace(TINY.model, head_dim=DIM), settings, 0, size=16).double()


def outputs(step: int) -> Tensor:
    """Projections and scores of both views, and of a local one."""
    return torch.randn(3 * BATCH, DIM + K, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


@pytest.mark.parametrize(
    ("queue", "queue_epochs", "first_used"), [(8, 0.0, 2), (8, 2.5, 5), (12, 1.0, 3), (0, 0.0, 99)]
)
def test_codes_are_shared_with_the_newest_rows_once_the_queue_is_full_and_its_epochs_have_come(
    queue: int, queue_epochs: float, first_used: int
) -> None:
    """With two steps in an epoch; the prototypes change after every step, as an optimizer changes them."""
    model, history = method(queue, queue_epochs), []
    for step in range(8):
        progress = Progress(step / 8, step / 2, step)
        model.start_step(progress)
        views = outputs(step)[:, DIM:].split(BATCH)
        earlier = None
        if step >= first_used:
            newest = torch.cat(history[-queue // BATCH :], dim=1)
            earlier = torch.stack([view @ model.prototypes.weight.detach().T for view in newest])
        expected = swav_loss(views, 0.1, epsilon=0.5, earlier=earlier)
        got = model.loss(outputs(step), [BATCH])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert (step < first_used) == torch.equal(got, swav_loss(views, 0.1, epsilon=0.5))
        with torch.no_grad():
            model.prototypes.weight.add_(0.3 * torch.randn(K, DIM, generator=torch.Generator().manual_seed(step)))
        model.after_step(outputs(step), [BATCH], progress)
        history.append(F.normalize(outputs(step)[: 2 * BATCH, :DIM], dim=1).unflatten(0, (2, BATCH)))


def test_codes_are_finite_at_the_least_epsilon_and_less_is_refused() -> None:
    """Scores are cosines; all are 1 where the features have collapsed."""
    for scores in (torch.ones(1024, 300), -torch.ones(1024, 300), torch.eye(300) * 2 - 1):
        codes = sinkhorn(scores, SwAVConfig(epsilon=0.015).epsilon)
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(scores)))
    with pytest.raises(BadInput, match=r"method.epsilon must be at least 0.015, not 0.01: less overflows"):
        SwAVConfig(epsilon=0.01)


def test_without_a_queue_a_checkpoint_holds_none() -> None:
    assert "queue" not in method(0, 0.0).state_dict()
    assert method(8, 0.0).state_dict()["queue"].shape == (2, 8, DIM)
