"""One training step: forward over all views, the loss over the global batch, summed gradients, optimizer step.

A batch that does not fit into memory is split into passes (`pass_size`): BatchNorm is then over each pass, the loss
still over all of B, by the two forwards of GradCache (Gao et al. 2021). The number of workers changes only the
rounding, and the step works with any method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from simclr_ray import collective
from simclr_ray.methods.method import Method
from simclr_ray.model.batchnorm import set_update_running
from simclr_ray.train.batch import channel_scale, normalise

Forward = Callable[[UInt8[Tensor, "n h w 3"]], Float[Tensor, "n d"]]


@dataclass(frozen=True)
class StepResult:
    """Tensors still on the device: reading their values waits for it."""

    loss: Float[Tensor, ""]
    """This worker's share; the loss is the sum over workers."""
    outputs: Float[Tensor, "n d"]
    """The method's outputs for this worker's rows: all first views, then all second ones."""


def forward_of(
    model: Method, mean: Sequence[float], std: Sequence[float], precision: str, device: torch.device, *, compiled: bool
) -> Forward:
    """The function from pixels to the method's outputs, normalisation and autocast included.

    Compiled, it has no graph break.
    """
    scale, shift = channel_scale(mean, std, torch.float64 if precision == "float64" else torch.float32, device)
    if compiled:
        torch._dynamo.reset()  # it counts the graphs of a function over all runs of a process, and fails after eight

    def forward(pixels: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n d"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(normalise(pixels, scale, shift))

    return torch.compile(forward, fullgraph=True, dynamic=False) if compiled else forward


def training_step(
    model: Method,
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    views: UInt8[Tensor, "n 2 h w 3"],
    *,
    passes: int,
    rows_per_worker: Sequence[int],
    labels: Int64[Tensor, " n"] | None = None,
    progress: float = 0.0,
) -> StepResult:
    """One optimizer step on this worker's rows `views`; `rows_per_worker`: images of one pass on each worker.

    `labels`: of the rows, for a method that is trained on them. `progress`: how much of the run is done, from 0 to 1,
    for the method's own schedules.
    """
    optimizer.zero_grad(set_to_none=True)
    batch_rows = [rows * passes for rows in rows_per_worker]

    def loss_of(outputs: Tensor) -> Tensor:
        return model.loss(outputs, batch_rows) if labels is None else model.labelled_loss(outputs, labels, batch_rows)

    if passes == 1:
        outputs = forward(_view_by_view(views))
        loss = loss_of(outputs)
        loss.backward()
    else:
        loss, outputs = _backward_in_passes(model, forward, views.chunk(passes), loss_of)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    collective.sum_gradients(parameters)
    optimizer.step()
    model.after_step(outputs.detach(), batch_rows, progress)
    return StepResult(loss.detach(), outputs.detach())


def _backward_in_passes(
    model: Method, forward: Forward, parts: Sequence[Tensor], loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """GradCache: forward every pass without a graph, take the loss's gradient with respect to all outputs; then forward
    each pass again with a graph, and backpropagate its part of that gradient."""
    set_update_running(model, False)
    with torch.no_grad():
        by_view = [forward(_view_by_view(part)).unflatten(0, (2, -1)) for part in parts]
    set_update_running(model, True)
    outputs = torch.cat(by_view, dim=1).flatten(0, 1).requires_grad_()
    loss = loss_of(outputs)
    loss.backward()
    assert outputs.grad is not None
    gradients = outputs.grad.unflatten(0, (2, -1)).chunk(len(parts), dim=1)
    for part, gradient in zip(parts, gradients, strict=True):
        forward(_view_by_view(part)).backward(gradient.flatten(0, 1))
    return loss, outputs


def _view_by_view(views: UInt8[Tensor, "n 2 h w 3"]) -> UInt8[Tensor, "m h w 3"]:
    """All first views, then all second ones: they share one forward, and so one BatchNorm."""
    return views.transpose(0, 1).flatten(0, 1)
