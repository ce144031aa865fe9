"""An ablation in one figure: a heat map of pairs, or a dot for each config beside the paper's.

Importing this imports matplotlib, a second or two.
"""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simclr_ray.report.ablation import Result, results
from simclr_ray.report.marks import BEST, COMPLETE, STYLE, WIDTH, Plot, png
from simclr_ray.sweep.ablations import OPERATIONS, PAIR
from simclr_ray.sweep.records import SweepRecords

COLOURS = "viridis"
PANEL = 3.1
"""Height of a heat map in inches."""
ROW = 0.32
"""Height of a config's row in inches."""


def ablation_plots(records: SweepRecords) -> list[Plot]:
    found = results(records)
    if not any(result.values for result in found):
        return [Plot(name="ablation", title="Comparison", caption="No run is complete yet.", png=None)]
    with rc_context(STYLE):
        return [_pairs(records, found) if records.ablation == "augmentation" else _dots(records, found)]


def _pairs(records: SweepRecords, found: list[Result]) -> Plot:
    """Here and in the paper, each on its own scale."""
    figure = Figure(figsize=(WIDTH, PANEL), layout="constrained")
    here: dict[str, float | None] = {result.point.label: result.mean for result in found}
    paper = {result.point.label: result.point.paper for result in found}
    for axes, title, values in zip(figure.subplots(1, 2), (records.unit, "the paper"), (here, paper), strict=True):
        _heat_map(axes, title, _grid(values))
    caption = (
        "The diagonal: one operation alone; else the row's with the column's, on one view of two. Of the paper's "
        "(figure 5) the upper half is shown, where the row's comes first; here the order is fixed."
    )
    return Plot(name="ablation", title="Pairs of augmentations", caption=caption, png=png(figure))


def _grid(values: dict[str, float | None]) -> NDArray[np.float64]:
    """NaN below the diagonal, and where there is no value."""
    names = list(OPERATIONS)
    grid = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for k, second in enumerate(names[i:], i):
            value = values.get(first if i == k else PAIR.format(first, second))
            grid[i, k] = np.nan if value is None else value
    return grid


def _heat_map(axes: Axes, title: str, grid: NDArray[np.float64]) -> None:
    axes.grid(False)
    axes.imshow(grid, cmap=COLOURS)
    axes.set_title(title)
    axes.set_xticks(range(len(OPERATIONS)), list(OPERATIONS), rotation=45, ha="right")
    axes.set_yticks(range(len(OPERATIONS)), list(OPERATIONS))
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            dark = value < np.nanmin(grid) + 0.6 * (np.nanmax(grid) - np.nanmin(grid))
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")


def _dots(records: SweepRecords, found: list[Result]) -> Plot:
    """A row for each config: its runs, their mean, and in a panel of its own the paper's figure."""
    with_paper = any(result.point.paper is not None for result in found)
    figure = Figure(figsize=(WIDTH, 0.8 + ROW * len(found)), layout="constrained")
    panels = figure.subplots(1, 1 + with_paper, sharey=True, squeeze=False)[0]
    for row, result in enumerate(found):
        for values, colour in ((result.values, COMPLETE), (result.projections, BEST)):
            panels[0].plot(values, [row] * len(values), "o", color=colour, alpha=0.5, markersize=4)
            if values:
                panels[0].plot([float(np.mean(values))], [row], "|", color=colour, markersize=14)
        if result.point.paper is not None:
            panels[1].plot([result.point.paper], [row], "o", color=COMPLETE, markersize=4)
    panels[0].set_yticks(range(len(found)), [result.point.label for result in found])
    panels[0].set_ylim(len(found) - 0.5, -0.5)
    for axes, label in zip(panels, (records.unit, "the paper, top-1 (%)"), strict=False):
        axes.set_xlabel(label)
    caption = "A dot for each run, a stroke for the mean over seeds."
    if any(result.projections for result in found):
        caption += " Orange: of the projections z instead of the features h."
    return Plot(name="ablation", title="Comparison", caption=caption, png=png(figure))
