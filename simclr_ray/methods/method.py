"""What the training loop asks of a method: outputs, a loss over the global batch, and updates after a step.

A method is one file: a module with encoder and heads, and its loss as a pure function. Its parameters and buffers are
its whole state; checkpoints hold them all, so a teacher or a queue resumes as exactly as the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.model.encoder import Encoder


class Progress(NamedTuple):
    """How far the run is when a step begins."""

    fraction: float
    """From 0 at its start to 1 at its end."""
    epoch: float
    step: int
    """Global steps done."""


START = Progress(0.0, 0.0, 0)
WHOLE_VIEWS = 2
"""Of every image, beside its local ones."""


def progress_at(step: int, epochs: int, steps_per_epoch: int) -> Progress:
    """When global step `step`, 0-based, begins."""
    return Progress(step / (epochs * steps_per_epoch), step / steps_per_epoch, step)


class Method(nn.Module):
    """Rows of `images` and of `outputs` are all first views, then all second ones: they share one BatchNorm.

    With multi-crop the rows of `outputs` go on with all first local views, all second ones, and so on.
    """

    encoder: Encoder
    head: nn.Module
    """From features h to projections z; methods that are trained on labels have none."""
    student_views: int = WHOLE_VIEWS
    """How many whole views of an image the encoder is given, the first ones: a teacher alone may see the others."""
    constant_rate: tuple[str, ...] = ()
    """Submodules whose learning rate stays at its peak."""

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d"]:
        """Everything that `loss` and `after_step` need; with several passes it is computed twice for most images."""
        raise NotImplementedError

    def forward_local(self, images: Float[Tensor, "m 3 s s"]) -> Float[Tensor, "m d"]:
        """`forward` of local views: outputs with the same columns."""
        raise NotImplementedError

    def start_step(self, progress: Progress) -> None:
        """Sets what the method's own schedules say for this step, as a function of the progress alone."""

    def loss(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        """This worker's share of the loss: the shares of all workers add up to the global batch's.

        Backward gives the gradient of the *global* loss with respect to the local outputs. `rows_per_worker`: images of
        every rank, in rank order.
        """
        raise NotImplementedError

    def labelled_loss(
        self, outputs: Float[Tensor, "m d"], labels: Int64[Tensor, " n"], rows_per_worker: Sequence[int]
    ) -> Float[Tensor, ""]:
        """`loss` of a method that is trained on labels, those of this worker's images."""
        raise NotImplementedError

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"] | None:
        """Logits by the method's own classifier, or None where it has none."""
        return None

    def projections(self, outputs: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """The projections of the first and of the second views, for the collapse signals."""
        raise NotImplementedError

    def after_step(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int], progress: Progress) -> None:
        """Updates the state that no gradient trains, after the optimizer's step."""


def at_least_float32(values: Tensor) -> Tensor:
    """Losses are computed in float32 under bf16, and in float64 for float64."""
    return values if values.element_size() >= 4 else values.float()


def views_of(outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int]) -> list[Float[Tensor, "n d"]]:
    """The outputs view by view: the first, the second, then the local ones."""
    return list(outputs.split(rows_per_worker[collective.rank()]))


def global_rows(local: int, rows_per_worker: Sequence[int] | None) -> int:
    """N: the rows of all workers; without `rows_per_worker` all hold as many as this one, `local`."""
    if rows_per_worker is None:
        return local * collective.size()
    assert rows_per_worker[collective.rank()] == local, (rows_per_worker, local)
    return sum(rows_per_worker)
