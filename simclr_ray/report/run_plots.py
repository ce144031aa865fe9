"""A run in plots: everything that it logged on one time axis, and where its time went.

Importing this imports matplotlib, a second or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from simclr_ray.report.attempts import attempts_of
from simclr_ray.report.goodput import TRAINING, Goodput
from simclr_ray.report.marks import BEST, COMPLETE, DEFAULT, FAILED, PRUNED, STYLE, WIDTH, Plot, png
from simclr_ray.storage.run_folder import Row

CHECKS = {"top1": "classifier %", "knn_top1": "kNN %", "linear_top1": "linear %", "rankme": "RankMe"}
MARKED = {
    "notice": ("notice of a preemption", BEST, "--"),
    "regroup": ("workers changed, the others trained on", DEFAULT, "-"),
    "restore": ("the group started again", FAILED, ":"),
}
"""Events by label, colour and line."""
UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))
PANEL_HEIGHT = 1.25


def run_plots(events: Sequence[Row], rows: Sequence[Row], goodput: Goodput) -> list[Plot]:
    with rc_context(STYLE):
        return [_time_axis(events, rows), _where_time_went(goodput)]


def _time_axis(events: Sequence[Row], rows: Sequence[Row]) -> Plot:
    title = "The run over time"
    if not rows:
        return Plot(name="time", title=title, caption="Nothing has been logged yet.", png=None)
    begin, last = events[0]["time"], max(row["time"] for row in [*events, *rows])
    unit, name = next((each for each in UNITS if last - begin < 180 * each[0]), UNITS[-1])

    def at(row: Row) -> float:
        return float(row["time"] - begin) / unit

    checks = {key: label for key, label in CHECKS.items() if any(key in row for row in rows)}
    probe = {"probe_top1": "probe %"} if any("probe_top1" in row for row in rows) else {}
    logged = {"loss": "loss", **checks, **probe, "lr": "learning rate", "images_per_s": "images/s"}
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * (len(logged) + 2)), layout="constrained")
    panels = figure.subplots(len(logged) + 2, sharex=True)
    for axes, (key, label) in zip(panels, logged.items(), strict=False):
        points = [(at(row), row[key]) for row in rows if key in row]
        axes.plot(*zip(*points, strict=True), color=COMPLETE, linewidth=1, marker="o" if key in checks else None, ms=3)
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    waits = [(at(row), 100 * row.get("data_wait_fraction", 0.0)) for row in rows]
    panels[-2].plot(*zip(*waits, strict=True), color=PRUNED, linewidth=1)
    panels[-2].set_ylabel("data wait %")
    panels[-2].set_ylim(bottom=0)
    _workers(panels[-1], events, rows, begin, unit)
    panels[-1].set_xlabel(name)
    shown = [kind for kind in MARKED if any(event["event"] == kind for event in events)]
    for kind in shown:
        label, color, line = MARKED[kind]
        for axes in panels:
            for event in events:
                if event["event"] == kind:
                    axes.axvline(at(event), color=color, linestyle=line, linewidth=0.8, zorder=1)
        panels[-1].plot([], [], color=color, linestyle=line, linewidth=0.8, label=label)
    if shown:
        figure.legend(loc="outside lower center", ncols=len(shown), fontsize=7.5)
    caption = f"Each panel has the same axis, {name} since the first start; workers fall to 0 where nobody trained."
    return Plot(name="time", title=title, caption=caption, png=png(figure))


def _workers(axes: Axes, events: Sequence[Row], rows: Sequence[Row], begin: float, unit: float) -> None:
    times: list[float] = []
    counts: list[int] = []
    for attempt in attempts_of(events, rows):
        ready = attempt.ready if attempt.ready < inf else attempt.end
        sizes = [(max(time, ready), workers) for time, workers in attempt.sizes]
        for time, workers in [*sizes, (attempt.end, 0)]:
            times.append((time - begin) / unit)
            counts.append(workers)
    axes.step(times, counts, where="post", color=COMPLETE, linewidth=1)
    axes.fill_between(times, counts, step="post", color=COMPLETE, alpha=0.15, linewidth=0)
    axes.set_ylabel("workers")
    axes.set_ylim(0, max(counts) + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))


def _where_time_went(goodput: Goodput) -> Plot:
    title = "Where the time went"
    spent = {name: seconds for name, seconds in goodput.seconds.items() if seconds > 0}
    if not spent:
        return Plot(name="goodput", title=title, caption="No time has been spent yet.", png=None)
    figure = Figure(figsize=(WIDTH, 0.7 + 0.24 * len(spent)), layout="constrained")
    axes = figure.subplots()
    shares = [seconds / goodput.total_s for seconds in spent.values()]
    colors = [COMPLETE if name == TRAINING else PRUNED for name in spent]
    bars = axes.barh(list(spent), shares, color=colors)
    labels = [f"{share:.1%}, {seconds:,.1f} s" for share, seconds in zip(shares, spent.values(), strict=True)]
    axes.bar_label(bars, labels, padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", visible=False)
    caption = f"Goodput {goodput.fraction:.1%}: the share of the time since the first start that went into training."
    return Plot(name="goodput", title=title, caption=caption, png=png(figure))
