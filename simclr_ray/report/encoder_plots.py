"""What an encoder makes of the test images: its features in two dimensions, and the nearest images of some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import decode
from simclr_ray.evaluate.results import OURS
from simclr_ray.evaluate.worth import Classified
from simclr_ray.report.marks import PRUNED, STYLE, panels, png
from simclr_ray.report.sheet import contact_sheet
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import FEATURE_MAP, NEAREST, REPORT

COLORED = 10
"""Classes with a colour of their own: the most frequent."""


def write_encoder_plots(run: Location, found: Sequence[Classified], bank: Dataset, queries: Dataset) -> None:
    """Writes the two plots, of all candidates and of the first, into the run's folder report/."""
    (run / REPORT / FEATURE_MAP).write_bytes(feature_map(found, queries.classes))
    (run / REPORT / NEAREST).write_bytes(nearest_sheet(found[0], bank, queries))


def feature_map(found: Sequence[Classified], classes: Sequence[str] | None) -> bytes:
    """A PNG with a panel for each candidate.

    By PCA, not by t-SNE: it is a projection, the same at every call, without a setting; what lies apart in it lies
    apart in the features too, where t-SNE makes clusters of noise (Wattenberg et al. 2016).
    """
    colored = [label for label, _ in Counter(sorted(found[0].labels.tolist())).most_common(COLORED)]
    with rc_context(STYLE):
        figure, grid = panels(len(found))
        for one, (axes,) in zip(found, grid, strict=True):
            _panel(axes, one, colored, classes)
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, markerscale=3)
        return png(figure)


def _panel(axes: Axes, one: Classified, colored: Sequence[int], classes: Sequence[str] | None) -> None:
    places, shares = principal_components(one.points)
    name = "this run" if one.name == OURS else one.name.rpartition("/")[2]
    axes.set_title(f"{name}, kNN {one.accuracies['knn'].top1:.1f} %", fontsize=8.5)
    axes.set_xlabel(f"{shares[0]:.0%} of the variance")
    axes.set_ylabel(f"{shares[1]:.0%}")
    axes.set(xticks=[], yticks=[])
    mark: dict[str, Any] = {"s": 3, "linewidth": 0, "alpha": 0.7}
    others = ~np.isin(one.labels, colored)
    if others.any():
        axes.scatter(*places[others].T, color=PRUNED, label="others", **mark)
    for number, label in enumerate(colored):
        named = classes[label] if classes else str(label)
        axes.scatter(*places[one.labels == label].T, color=colormaps["tab10"](number), label=named, **mark)


def principal_components(
    points: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " 2"]]:
    """The features, of unit length as kNN compares them, on their first two principal components; the shares of these
    in the variance.
    """
    pca = PCA(2, svd_solver="full")
    places = pca.fit_transform(normalize(points.astype(np.float64)))
    return places, pca.explained_variance_ratio_


def nearest_sheet(one: Classified, bank: Dataset, queries: Dataset) -> bytes:
    """A PNG: in each row a query in a frame, then its nearest images in the bank."""
    cells, captions = [], []
    of_queries, of_bank = SliceReader(queries), SliceReader(bank)
    for query, ids, similarities in zip(one.shown, one.nearest, one.similarities, strict=True):
        image, label = _image(queries, of_queries, int(query))
        cells.append(image)
        captions.append(f"test image {query}\n{label}")
        for row, similarity in zip(ids, similarities, strict=True):
            image, label = _image(bank, of_bank, int(row))
            cells.append(image)
            captions.append(f"{similarity:.3f}\n{label}")
    columns = 1 + one.nearest.shape[1]
    return contact_sheet(cells, captions, framed=range(0, len(cells), columns), columns=columns)


def _image(dataset: Dataset, reader: SliceReader, row: int) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """The image of a row, and its class."""
    (table,) = reader.rows(row, row + 1)
    label = table["label"][0].as_py()
    return decode(table["image"][0].as_py()), dataset.classes[label] if dataset.classes else str(label)
