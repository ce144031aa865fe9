"""A linear classifier of the features, trained beside the method: how far the encoder is, at every metrics row.

SimCLR's official code does so too (google-research/simclr, `lineareval_while_pretraining`), with one learning rate. The
features are those of the training views, as the method has them, and no gradient flows back; every batch is classified
before the classifier learns from it. It draws nothing and has a collective of its own, so the method's training is the
same to the bit with and without it.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.data.dataset import UNLABELLED
from simclr_ray.model.encoder import Encoder
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.step import Forward

RATES = (0.01, 0.03, 0.1, 0.3)
"""Learning rates at a global batch of 256, constant; features of other networks have another size and want another."""
MOMENTUM = 0.9
AVERAGED_IMAGES = 8192
"""What is reported is a moving average over about so many images, whatever the batch and the interval of the log."""


class Probe(nn.Module):
    """A softmax classifier for each of RATES, from zero, by SGD with Nesterov momentum.

    All its state is in buffers. As a submodule of the method it is in checkpoints, and goes wherever the method's state
    goes: to another generation of workers, or back to the last step. The method's optimizer does not see it.
    """

    weight: Tensor
    """(rates, classes, d + 1), the bias last."""
    velocity: Tensor
    sums: Tensor
    """Moving sums over labelled views: those classified right and the loss, by rate, and how many they are."""
    rates: Tensor

    def __init__(self, encoder: Encoder, classes: int, global_batch: int) -> None:
        """`encoder`: whose features are classified, whenever it is in training mode."""
        super().__init__()
        shape = (len(RATES), classes, encoder.feature_dim + 1)
        self.register_buffer("weight", torch.zeros(shape))
        self.register_buffer("velocity", torch.zeros(shape))
        self.register_buffer("sums", torch.zeros(2 * len(RATES) + 1))
        rates = torch.tensor(RATES, dtype=torch.float64) * global_batch / 256
        self.register_buffer("rates", rates.view(-1, 1, 1), persistent=False)
        self._kept = math.exp(-global_batch / AVERAGED_IMAGES)
        self._features: Tensor | None = None
        encoder.register_forward_hook(self._see)

    def _see(self, encoder: nn.Module, images: Any, features: Tensor) -> None:
        """Compiled with the encoder: an attribute is all that the compiler can set without breaking its graph."""
        if encoder.training:
            self._features = features.detach()

    def watching(self, forward: Forward, seen: MutableSequence[Tensor]) -> Forward:
        """`forward`, which also appends the features of each call to `seen`; not of local views."""

        def watched(pixels: UInt8[Tensor, "m h w 3"], *, local: bool = False) -> Float[Tensor, "m d"]:
            outputs = forward(pixels, local=local)
            if not local:
                assert self._features is not None
                seen.append(self._features)
            self._features = None
            return outputs

        return watched

    @torch.no_grad()
    def train_on(self, features: Sequence[Float[Tensor, "m d"]], labels: Sequence[Int64[Tensor, " n"]]) -> None:
        """One step of all the classifiers on the global batch, of which this worker holds these passes.

        `features` of each pass: of all its first views, then of all second ones, if the method's encoder sees them.
        Views that are UNLABELLED are left out; the loss is the mean over the others, of all workers.
        """
        h = F.pad(torch.cat(list(features)).to(self.weight.dtype), (0, 1), value=1.0)
        y = torch.cat([own.repeat(len(seen) // len(own)) for seen, own in zip(features, labels, strict=True)])
        labelled = (y != UNLABELLED).to(h.dtype)[:, None]
        logits = torch.einsum("nd,rcd->nrc", h, self.weight)
        log_p = logits.log_softmax(dim=2)
        own = y.clamp(min=0)[:, None, None].expand(-1, len(RATES), 1)
        losses = -log_p.gather(2, own).squeeze(2) * labelled
        right = (logits.argmax(dim=2) == y[:, None]).to(h.dtype)
        error = log_p.exp().scatter_add_(2, own, -torch.ones_like(own, dtype=h.dtype)) * labelled[:, None]
        gradient = torch.einsum("nrc,nd->rcd", error, h)
        found = torch.cat([gradient.flatten(), right.sum(dim=0), losses.sum(dim=0), labelled.sum()[None]])
        collective.sum_over_workers(found)
        total, sums = found.split([gradient.numel(), len(self.sums)])
        self._descend(total.view_as(gradient) / sums[-1].clamp(min=1))
        self.sums.mul_(self._kept).add_(sums)

    def _descend(self, gradient: Tensor) -> None:
        self.velocity.mul_(MOMENTUM).add_(gradient)
        self.weight.addcmul_(self.rates, gradient.add(self.velocity, alpha=MOMENTUM), value=-1)

    def measures(self) -> Row:
        """Of the rate that does best: `probe_top1` in percent and `probe_loss`, before learning from what they are
        measured on. Nothing while no image had a label. Waits for the device."""
        found = self.sums.tolist()
        right, losses, count = found[: len(RATES)], found[len(RATES) : -1], found[-1]
        if not count:
            return {}
        best = right.index(max(right))
        return {"probe_top1": 100 * right[best] / count, "probe_loss": losses[best] / count}


def probe_of(model: nn.Module) -> Probe | None:
    """The probe that is trained beside `model`, if there is one."""
    return next((part for part in model.children() if isinstance(part, Probe)), None)
