"""A sweep's report as files: PNG plots, and one HTML page that holds them and all else it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from simclr_ray.report.ablation import NOTE, ablation_cells, verdicts
from simclr_ray.report.sweep import against_default, best_recipe, cells, commands, cost, counts, recipe_name
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import REPORT
from simclr_ray.sweep.records import SweepRecords

STYLE = """
th:nth-child(2), td:nth-child(2), th:nth-child(3), td:nth-child(3) { text-align: left; }
th:last-child, td:last-child { text-align: left; white-space: normal; min-width: 14rem; }
"""
"""Of the table of trials: a rank, the trial, its state, figures, and its settings."""


def write_page(records: SweepRecords) -> Location:
    """Draws the plots into the sweep's folder report/, and index.html there, whose location it returns."""
    from simclr_ray.report import html  # imports matplotlib, a second or two
    from simclr_ray.report.ablation_plots import ablation_plots
    from simclr_ray.report.plots import plots

    drawn = ablation_plots(records) if records.ablation else plots(records)
    figures = [html.figure(plot) for plot in drawn]
    if records.ablation:
        head, *rows = ablation_cells(records)
        body = _ablation(records, html.table(head, (("", row) for row in rows)), figures)
    else:
        body = _body(records, figures)
    kind = "Ablation" if records.ablation else "Sweep"
    folder, title = records.folder / REPORT, f"{kind} {records.folder.name}"
    head, *rows = cells(records)
    kinds = ["best" if t is records.best else "" if t.state == "complete" else "other" for t in records.trials]
    trials = html.table(head, zip(kinds, rows, strict=True))
    return html.write_page(folder, title, [*body, trials], drawn, style=STYLE)


def _ablation(records: SweepRecords, table: str, figures: Sequence[str]) -> Iterator[str]:
    yield f"<p>Recipe {escape(records.recipe)}. {escape(counts(records))}.</p>"
    yield table
    yield f'<p class="note">{escape(NOTE)}</p>'
    yield f"<p>{'<br>'.join(map(escape, verdicts(records)))}</p>"
    yield from figures
    yield "<h2>Trials</h2>"


def _body(records: SweepRecords, figures: Sequence[str]) -> Iterator[str]:
    yield f"<p>Recipe {escape(records.recipe)}, objective {escape(records.unit)}, seed {records.seed}. "
    yield f"{escape(counts(records))}.<br>\n{escape(cost(records))}.<br>\n{escape(against_default(records))}.</p>"
    if records.best:
        yield f"<h2>The best</h2>\n<p>As a recipe: save it as {recipe_name(records)}.py.</p>"
        yield f"<pre>{escape(best_recipe(records))}</pre>"
        yield f"<pre>{escape(commands(records))}</pre>"
    yield from figures
    yield '<h2>Trials</h2>\n<p class="note">In brackets: an objective before the full budget, not ranked.</p>'
