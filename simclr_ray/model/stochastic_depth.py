"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382) whose masks come from outside: a layer draws nothing.

Each row drops residual branches of its own; kept ones are divided by 1 - rate, as by torchvision's StochasticDepth in
mode "row" and timm's DropPath. Masks are functions of the sample and its view (data/branches.py), and whoever forwards
an encoder in training mode says those of its rows: see `keeping`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Bool, Float
from torch import Tensor, nn

from simclr_ray.config import BadInput


class KeyedStochasticDepth(nn.Module):
    """In place of a library's layer at the end of a residual branch. It has no weights and no buffers."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept: Bool[Tensor, "m calls"] | None = None
        """Of the forward under way."""
        self.calls = 0
        """In the forward under way: a block may have one layer for all its branches, of which each draws for itself."""

    def forward(self, branch: Float[Tensor, "m *rest"]) -> Float[Tensor, "m *rest"]:
        if not self.training or self.rate == 0:
            return branch
        assert self.kept is not None, "an encoder with stochastic depth is trained without the masks of its rows"
        rows, most_calls = self.kept.shape
        if len(branch) != rows or self.calls == most_calls:
            raise BadInput(
                "model.drop_path: this network's layers of stochastic depth do not get one row for each image "
                f"({len(branch)} of {rows}), or more than {most_calls} times: set it to 0"
            )
        scale = self.kept[:, self.calls].to(branch.dtype) / (1 - self.rate)
        self.calls += 1
        return branch * scale.view(-1, *[1] * (branch.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.rate:.3f}"


@contextmanager
def keeping(layers: Sequence[KeyedStochasticDepth], kept: Bool[Tensor, "m layers calls"] | None) -> Iterator[None]:
    """For one forward of `m` rows through an encoder with these layers; False in `kept` drops a branch.

    The layers' attributes change outside of a compiled forward, which so has no graph break and is not compiled again.
    """
    masks = [None] * len(layers) if kept is None else kept.unbind(1)
    for layer, own in zip(layers, masks, strict=True):
        layer.kept, layer.calls = own, 0
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None


def never_drop(module: nn.Module) -> None:
    """Turns stochastic depth below `module` off for good."""
    for layer in module.modules():
        if isinstance(layer, KeyedStochasticDepth):
            layer.rate = 0.0
