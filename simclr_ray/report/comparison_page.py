"""Several runs as one HTML page: their curves over each other, and the table of their accuracies."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from simclr_ray.report.comparison import Comparison
from simclr_ray.report.html import figure, table, write_page
from simclr_ray.report.marks import STYLE, WIDTH, Plot, png
from simclr_ray.report.run_plots import CHECKS
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import REPORT

PANELS = {"loss": "loss", **CHECKS, "lr": "learning rate"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, distinct to the colour-blind too."""
LINES = ("-", "--", ":", "-.")
"""After so many colours the next."""


def write_comparison_page(compared: Comparison, run: Location) -> Location:
    """Writes comparison.html into the folder report/ of a run, and returns its location."""
    plot = _curves(compared)
    return write_page(run / REPORT, "Runs side by side", _body(compared, plot), [plot], name="comparison")


def _body(compared: Comparison, plot: Plot) -> Iterator[str]:
    yield table(compared.head, (("", cells) for cells in compared.rows()))
    yield "".join(f'<p class="note">{escape(line)}</p>' for line in compared.notes())
    yield figure(plot)
    yield "<h2>The runs</h2>"
    runs = ((label, run) for label, group in compared.groups.items() for run in group)
    yield table(
        ["", "seed", "state", "folder"],
        (("", [label, str(run.config.train.seed), run.state, run.address]) for label, run in runs),
    )


def _curves(compared: Comparison) -> Plot:
    title, drawn = "The runs over the images seen", curves(compared)
    if drawn is None:
        return Plot(name="comparison", title=title, caption="Nothing has been logged yet.", png=None)
    caption = (
        "Images seen in all epochs: steps times the global batch. Losses of different methods, temperatures or batches "
        "are not on one scale."
    )
    return Plot(name="comparison", title=title, caption=caption, png=png(drawn))


def curves(compared: Comparison) -> Figure | None:
    """A panel for each of PANELS that any run logged, with a line for each run; None where none logged anything.

    The seeds of a config share colour and line.
    """
    logged = {key for run in compared.runs for row in run.rows for key in row}
    shown = [key for key in PANELS if key in logged]
    if not shown:
        return None
    with rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 1.7 * len(shown) + 0.2 * len(compared.groups)), layout="constrained")
        panels = drawn.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
        for axes, key in zip(panels, shown, strict=True):
            _panel(axes, key, compared)
        panels[-1].set_xlabel("images seen")
        panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", fontsize=7.5)
    return drawn


def _panel(axes: Axes, key: str, compared: Comparison) -> None:
    axes.set_ylabel(PANELS[key])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    for number, (label, group) in enumerate(compared.groups.items()):
        color, line = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
        for run in group:
            if not run.rows:
                continue
            rows = [row for row in run.rows if key in row]
            seen = [row["step"] * run.config.train.global_batch for row in rows]
            mark, name = "o" if key in CHECKS else None, label if run is group[0] else None
            axes.plot(seen, [row[key] for row in rows], line, color=color, lw=1, marker=mark, ms=3, label=name)
