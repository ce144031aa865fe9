"""The objective over each pair of settings: a smooth surface through the trials at full budget, and the trials."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from simclr_ray.report.marks import LABELS, MARKS, Plot, beside, kind, legend, panels, png, scale
from simclr_ray.sweep.records import SweepRecords
from simclr_ray.sweep.trials import Setting

COLOURS = "viridis"
GRID = 241
"""Points of the surface along a range."""
FEWEST_TRIALS = 3
APART = 1e3
"""Between two choices, in bandwidths' units: nothing is smoothed across choices."""

Array = NDArray[np.float64]


def contours(records: SweepRecords) -> Plot:
    """A panel per pair of settings."""
    pairs = list(combinations(records.space, 2))
    complete = len(records.of_state("complete"))
    missing = (
        "a pair needs two settings, and one was searched"
        if not pairs
        else f"{complete} complete; a surface needs {FEWEST_TRIALS} complete trials at least"
        if complete < FEWEST_TRIALS
        else None
    )
    title = "Pairs of settings"
    if missing:
        return Plot(name="contours", title=title, caption=f"No contours: {missing}.", png=None)
    figure, grid = panels(len(pairs))
    axes_of = [axes for (axes,) in grid]
    values = [trial.objective or 0.0 for trial in records.of_state("complete")]
    levels = np.asarray(MaxNLocator(12).tick_values(min(values), max(values)))
    norm = BoundaryNorm(levels, 256)
    for axes, (first, second) in zip(axes_of, pairs, strict=True):
        axes.grid(False)
        _surface(axes, records, first, second, levels, norm)
        _trials(axes, records, first, second, norm)
        scale(axes, "x", first, records)
        scale(axes, "y", second, records)
    figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes_of, label=records.unit, shrink=0.9, pad=0.01)
    legend(figure)
    caption = (
        f"{records.unit} of the {complete} trials at full budget, smoothed (a Gaussian kernel on the scale searched, "
        "over whatever the other settings were) and left white where no such trial is near. A disc's own colour is its "
        "own objective."
    )
    return Plot(name="contours", title=title, caption=caption, png=png(figure))


def smoothed(at: Array, points: Array, values: Array) -> np.ma.MaskedArray:
    """The kernel mean of `values` (n) at the places `at` (m, d), masked where no point (n, d) is within a bandwidth.

    Places in units of the searched range. Nadaraya and Watson's estimate; the bandwidth falls as n^(-1/6), Scott's rate
    in two dimensions.
    """
    bandwidth = 0.25 * len(points) ** (-1 / 6)
    distances = ((at[:, None] - points[None]) ** 2).sum(-1) / bandwidth**2
    nearest = distances.min(1)
    weights = np.exp(-(distances - nearest[:, None]) / 2)
    return np.ma.masked_array(weights @ values / weights.sum(1), nearest > 1)


def _surface(
    axes: Axes, records: SweepRecords, first: Setting, second: Setting, levels: Array, norm: BoundaryNorm
) -> None:
    rows = [
        (first.place(trial.params.get(first.key)), second.place(trial.params.get(second.key)), trial.objective)
        for trial in records.of_state("complete")
    ]
    found = np.array([row for row in rows if None not in row], float).reshape(-1, 3)
    x, y = _grid(first), _grid(second)
    at = np.stack([c.ravel() for c in np.meshgrid(_units(first, x), _units(second, y))], -1)
    points = np.stack([_units(first, found[:, 0]), _units(second, found[:, 1])], -1)
    heights = smoothed(at, points, found[:, 2]).reshape(len(y), len(x))
    if first.choices or second.choices:
        axes.pcolormesh(x, y, heights, shading="nearest", cmap=COLOURS, norm=norm, rasterized=True)
    else:
        axes.contourf(x, y, heights, levels, cmap=COLOURS, norm=norm)
        axes.contour(x, y, heights, levels, colors="white", linewidths=0.4)


def _grid(setting: Setting) -> Array:
    low, high = setting.ends
    return np.arange(len(setting.choices), dtype=float) if setting.choices else np.linspace(low, high, GRID)


def _units(setting: Setting, places: Array) -> Array:
    """Places as parts of the searched range; choices far apart."""
    low, high = setting.ends
    return places * APART if setting.choices else (places - low) / ((high - low) or 1.0)


def _trials(axes: Axes, records: SweepRecords, first: Setting, second: Setting, norm: BoundaryNorm) -> None:
    for trial in records.trials:
        name = kind(records, trial)
        x, y = beside(first, trial), beside(second, trial)
        if name not in MARKS or x is None or y is None:
            continue
        mark = MARKS[name]
        if name == "complete":
            mark = {key: value for key, value in mark.items() if key != "color"}
            mark |= {"c": [trial.objective], "cmap": COLOURS, "norm": norm, "edgecolor": "black"}
        axes.scatter(x, y, label=LABELS[name], **mark)
