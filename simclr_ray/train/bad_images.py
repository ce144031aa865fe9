"""Counts the images that could not be decoded, by distinct id over all workers, and ends the run above a limit."""

from __future__ import annotations

from simclr_ray import collective
from simclr_ray.config import BadInput
from simclr_ray.data.order import Order
from simclr_ray.train.batch import Batch


def new_bad_ids(batch: Batch, bad_ids: set[int]) -> set[int]:
    """Ids of this worker's undecodable rows that are not in `bad_ids` yet."""
    return set(batch.ids[batch.bad].tolist()) - bad_ids if batch.bad.any() else set()


def add_bad_ids(batch: Batch, new: set[int], bad_ids: set[int], order: Order, max_fraction: float) -> None:
    """Adds every worker's new ids to `bad_ids`; all workers call it at the same step.

    Raises BadInput above the limit, and for a slice without a decodable image.
    """
    undecodable = batch.bad.reshape(-1, order.slice_rows).all(axis=1)
    bad_slices = (batch.ids[:: order.slice_rows][undecodable] // order.slice_rows).tolist()
    gathered = collective.gather_objects((new, bad_slices))
    for ids, _ in gathered:
        bad_ids |= ids
    lost_slices = sorted({g for _, slices in gathered for g in slices})
    limit = max(10, int(max_fraction * order.rows))
    if lost_slices or len(bad_ids) > limit:
        listed = ", ".join(map(str, sorted(bad_ids)[:20])) + (", ..." if len(bad_ids) > 20 else "")
        why = f"no image of slice {lost_slices[0]} can be decoded" if lost_slices else f"more than {limit} allowed"
        raise BadInput(
            f"{len(bad_ids)} images of the dataset cannot be decoded ({why}): rows {listed}; prepare it again and "
            "train under another --name"
        )
