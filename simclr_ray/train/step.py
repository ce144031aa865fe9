"""One training step: forward over all views, the loss over the global batch, summed gradients, optimizer step.

Views of one size share a forward, and so a BatchNorm; local views (multi-crop) have one of their own, as in SwAV's and
DINO's official code. A batch that does not fit into memory is split into passes (`pass_size`): BatchNorm is then over
each pass, the loss still over all of B, by the two forwards of GradCache (Gao et al. 2021). The number of workers
changes only the rounding, and the step works with any method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from simclr_ray import collective
from simclr_ray.methods.method import START, Method, Progress
from simclr_ray.model.batchnorm import set_update_running
from simclr_ray.model.stochastic_depth import keeping
from simclr_ray.train.batch import channel_scale, normalise
from simclr_ray.train.precision import fix_float32


@runtime_checkable
class Forward(Protocol):
    """From pixels to the method's outputs; `local`: of local views, which are smaller."""

    def __call__(self, pixels: UInt8[Tensor, "m h w 3"], *, local: bool = False) -> Float[Tensor, "m d"]: ...


@dataclass(frozen=True)
class StepResult:
    """Tensors still on the device: reading their values waits for it."""

    loss: Float[Tensor, ""]
    """This worker's share; the loss is the sum over workers."""
    outputs: Float[Tensor, "n d"]
    """The method's outputs for this worker's rows: all first views, then all second ones; not of local views."""


def forward_of(
    model: Method, mean: Sequence[float], std: Sequence[float], precision: str, device: torch.device, *, compiled: bool
) -> Forward:
    """The function from pixels to the method's outputs, normalisation and autocast included.

    Compiled, it has no graph break. What float32 is on a GPU: see `fix_float32`, which is called here.
    """
    fix_float32()
    scale, shift = channel_scale(mean, std, torch.float64 if precision == "float64" else torch.float32, device)
    if compiled:
        torch._dynamo.reset()  # it counts the graphs of a function over all runs of a process, and fails after eight

    def forward(pixels: UInt8[Tensor, "m h w 3"], *, local: bool = False) -> Float[Tensor, "m d"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            images = normalise(pixels, scale, shift)
            return model.forward_local(images) if local else model(images)

    return torch.compile(forward, fullgraph=True, dynamic=False) if compiled else forward


def training_step(
    model: Method,
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    views: UInt8[Tensor, "n 2 h w 3"],
    *,
    passes: int,
    rows_per_worker: Sequence[int],
    local: UInt8[Tensor, "n k s s 3"] | None = None,
    labels: Int64[Tensor, " n"] | None = None,
    kept: Sequence[Bool[Tensor, "n _ layers calls"]] | None = None,
    progress: Progress = START,
    clip_grad_norm: float | None = None,
) -> StepResult:
    """One optimizer step on this worker's rows `views`; `rows_per_worker`: images of one pass on each worker.

    `local`: their local views; `labels`: theirs, for a method that is trained on them. `kept`: where the encoder has
    stochastic depth, the branches that they keep, of each size of views; see `kept_of`. `clip_grad_norm`: the largest
    norm of the global batch's gradient, which is scaled down to it.
    """
    optimizer.zero_grad(set_to_none=True)
    model.start_step(progress)
    batch_rows = [rows * passes for rows in rows_per_worker]
    sizes = [views] if local is None else [views, local]
    outputs_of = _by_part(model, forward, sizes, kept, passes)

    def loss_of(outputs: Tensor) -> Tensor:
        return model.loss(outputs, batch_rows) if labels is None else model.labelled_loss(outputs, labels, batch_rows)

    if passes == 1:
        found = [outputs_of(0, i) for i in range(len(sizes))]
        outputs = found[0] if local is None else torch.cat(found)
        loss = loss_of(outputs)
        loss.backward()
    else:
        loss, outputs = _backward_in_passes(model, outputs_of, [size.shape[1] for size in sizes], passes, loss_of)
    _update(optimizer, clip_grad_norm)
    model.after_step(outputs.detach(), batch_rows, progress)
    return StepResult(loss.detach(), outputs.detach()[: 2 * len(views)])


def _update(optimizer: torch.optim.Optimizer, clip_grad_norm: float | None) -> None:
    """Moves the weights by the gradient of the global batch."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    collective.sum_gradients(parameters)
    if clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
    optimizer.step()


OutputsOf = Callable[[int, int], Tensor]
"""The outputs of a pass's views of one size, from the numbers of the two."""


def _by_part(
    model: Method, forward: Forward, sizes: Sequence[Tensor], kept: Sequence[Tensor] | None, passes: int
) -> OutputsOf:
    pixels = [size.chunk(passes) for size in sizes]
    masks = None if kept is None else [size.chunk(passes) for size in kept]

    def outputs_of(number: int, i: int) -> Tensor:
        own = None if masks is None else _view_by_view(masks[i][number])
        with keeping(model.encoder.stochastic_depth, own):
            return forward(_view_by_view(pixels[i][number]), local=i > 0)

    return outputs_of


def _backward_in_passes(
    model: Method, outputs_of: OutputsOf, counts: Sequence[int], passes: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """GradCache: forward every pass without a graph, take the loss's gradient with respect to all outputs; then forward
    each pass again with a graph, and backpropagate its part of that gradient. `counts`: of each size, an image's views.

    The first pass comes last in the first round and keeps its graph, so that it is not forwarded again. Its local views
    are: two graphs at once would need more memory. The second round goes from the first pass to the last, and running
    statistics are updated in this order.
    """
    first, *others = [(number, i) for number in range(passes) for i in range(len(counts))]
    set_update_running(model, False)
    try:
        with torch.no_grad():
            found = {part: outputs_of(*part) for part in others}
    finally:
        set_update_running(model, True)
    kept = outputs_of(*first)
    found[first] = kept.detach()
    by_view = [
        torch.cat([found[number, i].unflatten(0, (count, -1)) for number in range(passes)], dim=1)
        for i, count in enumerate(counts)
    ]
    outputs = torch.cat(by_view).flatten(0, 1).requires_grad_()
    loss = loss_of(outputs)
    loss.backward()
    assert outputs.grad is not None
    gradients = [part.chunk(passes, dim=1) for part in outputs.grad.unflatten(0, (sum(counts), -1)).split(counts)]
    for number, i in (first, *others):
        again = kept if (number, i) == first else outputs_of(number, i)
        again.backward(gradients[i][number].flatten(0, 1))
    return loss, outputs


def _view_by_view(views: Shaped[Tensor, "n k ..."]) -> Shaped[Tensor, "m ..."]:
    """All first views, then all second ones, and so on: those of one size share one forward, and so one BatchNorm."""
    return views.transpose(0, 1).flatten(0, 1)
