"""What needs labels: two datasets as bank and queries, both of the same classes, a supervised run, and the probe."""

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
    return _named_classes(dataset, classes, "--method.classes")


def require_teachers_classes(dataset: Dataset, classes: int) -> None:
    """Raises BadInput where a student, which has its teacher's classes, cannot be scored on the images' own."""
    if dataset.classes and len(dataset.classes) != classes:
        raise BadInput(
            f"the images of {dataset.uri} have {len(dataset.classes)} classes, method.teacher has {classes}: use "
            "--evaluate.method rankme, or name images of the teacher's classes by --evaluate.train"
        )


def probe_classes(dataset: Dataset, classes: int | None) -> int:
    """The same for the probe, which leaves images without a label out: some must have one."""
    if not dataset.labelled and not (classes or dataset.classes):
        raise BadInput(f"evaluate.probe needs labels: {dataset.uri} has images without; leave --evaluate.probe out")
    return _named_classes(dataset, classes, "--evaluate.probe-classes")


def _named_classes(dataset: Dataset, classes: int | None, flag: str) -> int:
    if classes is None and dataset.classes is None:
        raise BadInput(f"{dataset.uri} does not name its classes: say how many there are by {flag}")
    named = len(dataset.classes or ())
    if classes and classes < named:
        raise BadInput(f"{flag} {classes} is less than the {named} classes that {dataset.uri} names")
    return classes or named
