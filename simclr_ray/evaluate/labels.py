"""Whether two datasets can be bank and queries: both must have labels, of the same classes."""

from __future__ import annotations

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset


def require_same_classes(train: Dataset, test: Dataset) -> None:
    """Raises BadInput where labels are missing, or where both datasets name their classes and the names differ."""
    for dataset in (train, test):
        if not dataset.labelled:
            raise BadInput(
                f"{dataset.uri} has images without labels: evaluation needs labelled ones, such as class folders"
            )
    if train.classes and test.classes and train.classes != test.classes:
        raise BadInput(
            f"the {len(train.classes)} classes of {train.uri} are not the {len(test.classes)} of {test.uri}: "
            "evaluation needs two parts of one dataset"
        )
