"""What needs labels: two datasets as bank and queries, both of the same classes, and a supervised run."""

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


def labelled_classes(dataset: Dataset, classes: int | None) -> int:
    """How many classes a supervised run has: `classes`, or as many as the dataset names.

    Raises BadInput for images without labels, and where neither says how many there are.
    """
    if not dataset.labelled:
        raise BadInput(f"method supervised needs labels: {dataset.uri} has images without; use another --method")
    if classes is None and dataset.classes is None:
        raise BadInput(f"{dataset.uri} does not name its classes: say how many there are by --method.classes")
    return classes or len(dataset.classes or ())
