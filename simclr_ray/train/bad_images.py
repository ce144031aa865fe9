"""The account of images that could not be decoded: by distinct id, over all workers, up to a limit."""

from __future__ import annotations

from simclr_ray import collective
from simclr_ray.config import BadInput
from simclr_ray.data.order import Order
from simclr_ray.train.batch import Batch


def new_bad(batch: Batch, bad_ids: set[int]) -> set[int]:
    """Ids of this worker's rows that are bad and not yet among `bad_ids`."""
    return set(batch.ids[batch.bad].tolist()) - bad_ids if batch.bad.any() else set()


def count_bad(batch: Batch, new: set[int], bad_ids: set[int], order: Order, max_fraction: float) -> None:
    """Adds all workers' new ids to `bad_ids`; all call it at the same step. Raises BadInput over the limit."""
    lost = batch.bad.reshape(-1, order.slice_rows).all(axis=1)
    lost_slices = (batch.ids[:: order.slice_rows][lost] // order.slice_rows).tolist()
    gathered = collective.gather_objects((new, lost_slices))
    for ids, _ in gathered:
        bad_ids |= ids
    whole = sorted({g for _, slices in gathered for g in slices})
    limit = max(10, int(max_fraction * order.rows))
    if whole or len(bad_ids) > limit:
        listed = ", ".join(map(str, sorted(bad_ids)[:20])) + (", ..." if len(bad_ids) > 20 else "")
        why = f"no image of slice {whole[0]} can be decoded" if whole else f"more than {limit} allowed"
        raise BadInput(
            f"{len(bad_ids)} images of the dataset cannot be decoded ({why}): rows {listed}; prepare it again and "
            "train under another --name"
        )
