"""A sweep in plots: its history, learning curves, importances, each setting alone and each pair of them.

Importing this imports matplotlib, a second or two.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from simclr_ray.report.marks import (
    BEST,
    COMPLETE,
    DEFAULT,
    FAILED,
    LABELS,
    MARKS,
    PRUNED,
    STYLE,
    WIDTH,
    Plot,
    beside,
    columns_of,
    kind,
    legend,
    panels,
    png,
    scale,
    scatter,
)
from simclr_ray.report.surface import contours
from simclr_ray.sweep.importances import importances
from simclr_ray.sweep.records import SweepRecords
from simclr_ray.sweep.trials import Setting, Trial

LINES = {"best": BEST, "complete": COMPLETE, "pruned": PRUNED, "failed": FAILED, "running": DEFAULT}


def plots(records: SweepRecords) -> list[Plot]:
    """All of them, drawn."""
    with rc_context(STYLE):
        return [draw(records) for draw in (_history, _curves, _importances, _slices, contours)]


def _history(records: SweepRecords) -> Plot:
    title = "Optimisation history"
    if not any(trial.curve for trial in records.of_state("complete", "pruned")):
        return Plot(name="history", title=title, caption="No history: no objective has been measured yet.", png=None)
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    scatter(axes, records, lambda trial: (trial.number, None if trial.state == "failed" else trial.objective))
    failed = [trial.number for trial in records.of_state("failed")]
    if failed:  # often before anything was measured: at the foot
        foot = axes.get_xaxis_transform()
        axes.scatter(failed, [0.03] * len(failed), label=LABELS["failed"], transform=foot, **MARKS["failed"])
    last = max(trial.number for trial in records.trials)
    complete = sorted(records.of_state("complete"), key=lambda trial: trial.number)
    if complete:
        best = list(accumulate((trial.objective or 0.0 for trial in complete), max))
        numbers = [trial.number for trial in complete]
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=BEST, label="best so far", zorder=2)
    default = records.default
    if default and default.state == "complete" and default.objective is not None:
        axes.axhline(default.objective, color=DEFAULT, linestyle="--", linewidth=1, label="recipe's own values")
    axes.set(xlabel="trial", ylabel=records.unit, xlim=(-0.7, last + 0.7))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure)
    caption = (
        "Every trial in the order of its start. The line is the best at full budget so far; a trial that ended early "
        "is shown with its last objective, which is not comparable; a failed one at the foot."
    )
    return Plot(name="history", title=title, caption=caption, png=png(figure))


def _curves(records: SweepRecords) -> Plot:
    title = "Learning curves"
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    trials = [trial for trial in reversed(records.trials) if trial.curve]
    if not trials:
        return Plot(name="curves", title=title, caption="No curves: nothing has been measured yet.", png=None)
    for trial in trials:
        name = kind(records, trial)
        width, order = (2.0, 2.5) if name == "best" else (0.9, 2)
        axes.plot(
            *zip(*trial.curve, strict=True), color=LINES.get(name, PRUNED), linewidth=width, zorder=order, alpha=0.85
        )
        if name in MARKS:
            axes.scatter(*trial.curve[-1], label=LABELS[name], **MARKS[name])
        else:
            axes.scatter(*trial.curve[-1], label=name, marker=".", color=DEFAULT)
    for budget in {records.budget_of(trial) for trial in trials}:
        axes.axvline(budget, color="0.6", linestyle=":", linewidth=1)
    axes.set(xlabel="samples seen", ylabel=records.unit, xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure)
    caption = (
        "The objective over the samples seen, up to the full budget (dotted). Each curve ends where its trial was last "
        "measured."
    )
    return Plot(name="curves", title=title, caption=caption, png=png(figure))


def _importances(records: SweepRecords) -> Plot:
    title, found = "Importances", importances(records)
    if isinstance(found, str):
        return Plot(name="importances", title=title, caption=f"No importances: {found}.", png=None)
    rest = max(0.0, 1 - sum(found.parts.values()))
    parts = [*found.parts.items(), *([("interactions", rest)] if len(found.parts) > 1 else [])]
    figure = Figure(figsize=(WIDTH, 0.7 + 0.32 * len(parts)), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", visible=False)
    colours = [PRUNED if key == "interactions" else COMPLETE for key, _ in parts]
    bars = axes.barh([key for key, _ in parts], [part for _, part in parts], color=colours, height=0.65)
    axes.bar_label(bars, [f"{part:.0%}" for _, part in parts], padding=3)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=f"part of the variance of {records.objective}")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    keys = " and ".join(found.unknown)
    unknown = f" All of them have the same {keys}, whose importance is unknown." if keys else ""
    caption = (
        f"fANOVA over the {found.trials} trials at full budget. What ASHA ended is not in it, so a setting whose bad "
        f"values it ended early looks less important than it is.{unknown}"
    )
    return Plot(name="importances", title=title, caption=caption, png=png(figure))


def _slices(records: SweepRecords) -> Plot:
    title, budget = "Each setting", max(map(records.budget_of, records.trials))
    if not records.best:
        return Plot(name="slices", title=title, caption="No slices: no trial is complete yet.", png=None)
    figure, grid = panels(len(records.space), heights=(1.0, 0.4))
    for at, ((above, below), setting) in enumerate(zip(grid, records.space, strict=True)):
        scatter(above, records, partial(_at_full_budget, setting))
        scatter(below, records, partial(_cut_short, setting))
        scale(above, "x", setting, records)
        scale(below, "x", setting, records)
        above.set(xlabel="", xticklabels=[])
        own = setting.place(setting.default)
        for axes, first, label in ((above, grid[0][0], records.unit), (below, grid[0][1], "ended after\n(samples)")):
            axes.sharey(first)
            axes.set_ylabel("" if at % columns_of(len(grid)) else label)
            if own is not None:
                axes.axvline(own, color=DEFAULT, linestyle="--", linewidth=1, label="recipe's own value")
        below.set_ylim(0, budget)
        below.yaxis.set_major_locator(MaxNLocator(3))
        below.yaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure)
    caption = (
        "Above: the objective of the trials at full budget. Below: how far the others came. The other settings of a "
        "trial are whatever they were."
        + " Trials of one choice are spread sideways."
        * any(s.choices for s in records.space)
    )
    return Plot(name="slices", title=title, caption=caption, png=png(figure))


def _at_full_budget(setting: Setting, trial: Trial) -> tuple[float | None, float | None]:
    return beside(setting, trial), trial.objective if trial.state == "complete" else None


def _cut_short(setting: Setting, trial: Trial) -> tuple[float | None, float | None]:
    return beside(setting, trial), trial.samples if trial.state in ("pruned", "failed") else None
