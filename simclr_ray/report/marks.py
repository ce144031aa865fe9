"""How the plots of a sweep look: colours, marks, the scale of a setting, a grid of panels, PNG bytes.

Colours are Okabe and Ito's, distinct to the colour-blind too; every mark has a shape of its own. Importing this imports
matplotlib, a second or two; no pyplot, and no default of matplotlib's is changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from simclr_ray.sweep.records import SweepRecords
from simclr_ray.sweep.trials import Setting, Trial, short

BEST, COMPLETE, PRUNED, FAILED, DEFAULT = "#D55E00", "#0072B2", "#666666", "#000000", "#009E73"
DPI = 200
WIDTH, PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 7.2, 2.4, 2.3, 3
"""Inches, and the most panels in a row."""
TICKS = 6
"""The most on a logarithmic axis."""
STYLE: Any = {
    "font.size": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "legend.frameon": False,
    "text.parse_math": False,
}
MARKS: dict[str, dict[str, Any]] = {
    "best": {"marker": "*", "s": 140, "color": BEST, "edgecolor": "white", "linewidth": 0.7, "zorder": 5},
    "complete": {"marker": "o", "s": 24, "color": COMPLETE, "edgecolor": "white", "linewidth": 0.5, "zorder": 4},
    "pruned": {"marker": "v", "s": 18, "facecolor": "white", "edgecolor": PRUNED, "linewidth": 0.9, "zorder": 3},
    "failed": {"marker": "x", "s": 20, "color": FAILED, "linewidth": 1.0, "zorder": 3},
}
LABELS = {"best": "best", "complete": "full budget", "pruned": "ended by ASHA", "failed": "failed"}


@dataclass(frozen=True, kw_only=True)
class Plot:
    name: str
    """Of its file, without .png."""
    title: str
    caption: str
    png: bytes | None
    """None: there is nothing to draw, and the caption says why."""


def png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def kind(records: SweepRecords, trial: Trial) -> str:
    """Its mark: a key of MARKS; for a trial that has not ended its state."""
    return "best" if trial is records.best else trial.state


def scatter(axes: Axes, records: SweepRecords, place: Callable[[Trial], tuple[float | None, float | None]]) -> None:
    """A mark for every ended trial that has a place."""
    for name, mark in MARKS.items():
        places = [place(trial) for trial in records.trials if kind(records, trial) == name]
        points = [(x, y) for x, y in places if x is not None and y is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), label=LABELS[name], clip_on=False, **mark)


def beside(setting: Setting, trial: Trial) -> float | None:
    """Its place; those of one choice are spread (by the golden ratio) so that they do not lie on one another."""
    place = setting.place(trial.params.get(setting.key))
    if place is None or not setting.choices:
        return place
    return place + (trial.number * 0.618034) % 1 / 2 - 0.25


def legend(figure: Figure) -> None:
    """One above all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = [*LABELS.values(), *found]
    labels = sorted(found, key=order.index)
    spacing: dict[str, Any] = {"handletextpad": 0.3, "columnspacing": 1.4}
    if labels:
        columns = 6 if figure.get_figwidth() >= WIDTH else 3
        figure.legend([found[label] for label in labels], labels, loc="outside upper center", ncols=columns, **spacing)


def columns_of(count: int) -> int:
    """In which so many panels stand."""
    return 2 if count == 4 else min(COLUMNS, count)


def panels(count: int, heights: tuple[float, ...] = (1.0,)) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `count` panels, and these; each of them axes of relative `heights`, one above the other."""
    columns = columns_of(count)
    rows = math.ceil(count / columns)
    width = WIDTH if columns == COLUMNS else max(4.2, columns * PANEL_WIDTH * 1.2)
    figure = Figure(figsize=(width, rows * PANEL_HEIGHT * sum(heights) + 0.4), layout="constrained")
    grid = figure.subplots(rows * len(heights), columns, squeeze=False, height_ratios=heights * rows)
    for spare in range(count, rows * columns):
        for level in range(len(heights)):
            grid[spare // columns * len(heights) + level, spare % columns].remove()
    return figure, [
        [grid[at // columns * len(heights) + level, at % columns] for level in range(len(heights))]
        for at in range(count)
    ]


def scale(axes: Axes, which: Literal["x", "y"], setting: Setting, records: SweepRecords) -> None:
    """Makes an axis that of `setting`, whose values are drawn at their `place`."""
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(setting.label + (" (log)" if setting.log else ""))
    if setting.log or setting.choices:
        ticks = list(_ticks(setting))
        axis.set_major_locator(FixedLocator([place for place, _ in ticks]))
        axis.set_major_formatter(FixedFormatter([label for _, label in ticks]))
        axis.set_minor_locator(NullLocator())
    tried = (setting.place(trial.params.get(setting.key)) for trial in records.trials)
    places = [*setting.ends, *(place for place in (setting.place(setting.default), *tried) if place is not None)]
    margin = 0.5 if setting.choices else 0.04 * (max(places) - min(places)) or 0.5
    limits = (min(places) - margin, max(places) + margin)
    axes.set(xlim=limits) if which == "x" else axes.set(ylim=limits)


def _ticks(setting: Setting) -> Iterator[tuple[float, str]]:
    """(place, label) of each choice, or of 1, 2, 5, 10 and so on as far as they fit."""
    if setting.choices:
        yield from ((float(at), short(choice)[:14]) for at, choice in enumerate(setting.choices))
        return
    decades = range(math.floor(math.log10(setting.low)), math.ceil(math.log10(setting.high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = [digit * 10.0**decade for decade in decades for digit in digits]
        values = [value for value in values if setting.low * 0.999 <= value <= setting.high * 1.001]
        if len(values) <= TICKS:
            break
    values = values[:: math.ceil(len(values) / TICKS)] if len(values) > 1 else [setting.low, setting.high]
    yield from ((math.log(value), short(value)) for value in values)
