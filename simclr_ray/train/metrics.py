"""The values of a metrics row: global loss, collapse signals, the probe, images per second and waits for data."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic, time

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr_ray import collective
from simclr_ray.data.order import Order
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.batch import Batch
from simclr_ray.train.probe import probe_of
from simclr_ray.train.state import TrainState
from simclr_ray.train.step import StepResult


class Diverged(RuntimeError):
    """The loss is not finite. It is deterministic, so another attempt would end in the same way."""


Mark = float | torch.Event
MOST_MARKS = 64
"""Steps whose waits are not added up yet: no device is so far behind the process, so that to add up waits for none."""


def mark(device: torch.device) -> Mark:
    """The time at which `device` comes to this point of its work: on a CPU now."""
    if device.type == "cpu":
        return monotonic()
    event = torch.Event(device, enable_timing=True)
    event.record()
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Waits until the device has come to `end`."""
    if isinstance(start, float):
        assert isinstance(end, float)
        return end - start
    assert not isinstance(end, float)
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Meter:
    """Images per second and the fraction of time in which `device` waited for data, since the last `read`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waits: deque[tuple[Mark, Mark]] = deque()
        self._start, self._waited, self._images = monotonic(), 0.0, 0

    def timed(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """The stream; what passes on the device during each `next` is counted as waiting for data.

        A GPU is steps behind this process: from the end of a step until its next batch is there it has nothing to do,
        while this process may wait for data in that time, or long before it.
        """
        iterator = iter(stream)
        while True:
            start = mark(self._device)
            batch = next(iterator, None)
            if batch is None:
                return
            self._waits.append((start, mark(self._device)))
            self._add_up(MOST_MARKS)
            yield batch

    def _add_up(self, rest: int) -> None:
        while len(self._waits) > rest:
            self._waited += seconds_between(*self._waits.popleft())

    def trained(self, images: int) -> None:
        self._images += images

    def read(self) -> Row:
        self._add_up(0)
        elapsed = max(monotonic() - self._start, 1e-9)
        row = {
            "images_per_s": round(self._images / elapsed, 1),
            "data_wait_fraction": round(self._waited / elapsed, 4),
        }
        self._start, self._waited, self._images = monotonic(), 0.0, 0
        return row


def metrics_row(state: TrainState, result: StepResult, order: Order, workers: int, lr: float, meter: Meter) -> Row:
    """The metrics row of the step just done, the same on every worker; all of them call it. Raises Diverged."""
    loss = float(collective.sum_over_workers(result.loss.clone()))
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {state.step}: lower optim.lr_per_256, or warm up for longer")
    passes = order.global_batch // order.pass_size
    batch_rows = [rows * passes for rows in order.rows_per_pass(workers)]
    view_a, view_b = (
        collective.gather_rows(view.contiguous(), batch_rows) for view in state.model.projections(result.outputs)
    )
    probe = probe_of(state.model)
    return {
        "step": state.step,
        "epoch": round(state.step / order.steps_per_epoch, 4),
        "samples": state.step * order.global_batch,
        "loss": loss,
        "lr": lr,
        **collapse_signals(view_a, view_b),
        **(probe.measures() if probe else {}),
        **meter.read(),
        "workers": workers,
        "bad": len(state.bad_ids),
        "time": round(time(), 3),
    }


@torch.no_grad()
def collapse_signals(view_a: Float[Tensor, "n d"], view_b: Float[Tensor, "n d"]) -> dict[str, float]:
    """Signals that show a collapse before the accuracy does, over the projections of a global batch.

    `feature_std`: sqrt(d) x the mean standard deviation of the normalised coordinates, 1 when they spread over the
    sphere, 0 when they collapse. `alignment` and `uniformity` (Wang and Isola 2020): mean squared distance of the two
    views; log of the mean Gaussian potential (t = 2) over pairs of images.
    """
    a, b = F.normalize(view_a.double(), dim=1), F.normalize(view_b.double(), dim=1)
    n, d = a.shape
    pairs = sum(float((-2 * torch.cdist(a[i : i + 1024], a).square()).exp().sum()) for i in range(0, n, 1024))
    return {
        "feature_std": float(a.std(dim=0, correction=0).mean() * d**0.5),
        "alignment": float((a - b).square().sum(dim=1).mean()),
        "uniformity": math.log((pairs - n) / (n * (n - 1))),
    }
