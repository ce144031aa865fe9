"""A sweep's report as files: PNG plots, and one HTML page that holds them and all else it needs."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape

from simclr_ray.report.sweep import against_default, best_recipe, cells, commands, cost, counts, recipe_name
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import REPORT
from simclr_ray.sweep.records import SweepRecords

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h1, h2 { line-height: 1.2; }
pre { background: #f5f5f5; padding: 0.8rem 1rem; border-radius: 4px; overflow-x: auto; font-size: 0.85rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 0.9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:nth-child(2), td:nth-child(2), th:nth-child(3), td:nth-child(3) { text-align: left; }
th:last-child, td:last-child { text-align: left; white-space: normal; min-width: 14rem; }
tbody tr.best { background: #fdf0e6; font-weight: 600; } tbody tr.other { color: #666; }
"""


def write_page(records: SweepRecords) -> Location:
    """Draws the plots into the sweep's folder report/, and index.html there, whose location it returns."""
    from simclr_ray.report.plots import plots  # imports matplotlib, a second or two

    folder = records.folder / REPORT
    figures = []
    for plot in plots(records):
        drawn = ""
        if plot.png:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
            data = base64.b64encode(plot.png).decode()
            drawn = f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">\n'
        caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
        figures.append(f"<h2>{escape(plot.title)}</h2>\n<figure>\n{drawn}{caption}\n</figure>")
    page = folder / "index.html"
    page.write_bytes("\n".join(_html(records, figures)).encode())
    return page


def _html(records: SweepRecords, figures: list[str]) -> Iterator[str]:
    title = escape(f"Sweep {records.folder.name}")
    yield f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{title}</h1>"
    yield f"<p>Recipe {escape(records.recipe)}, objective {escape(records.unit)}, seed {records.seed}. "
    yield f"{escape(counts(records))}.<br>\n{escape(cost(records))}.<br>\n{escape(against_default(records))}.</p>"
    if records.best:
        yield f"<h2>The best</h2>\n<p>As a recipe: save it as {recipe_name(records)}.py.</p>"
        yield f"<pre>{escape(best_recipe(records))}</pre>"
        yield f"<pre>{escape(commands(records))}</pre>"
    yield from figures
    yield '<h2>Trials</h2>\n<p class="note">In brackets: an objective before the full budget, not ranked.</p>'
    yield f'<div class="table"><table>\n{_table(records)}\n</table></div>\n</body>\n</html>\n'


def _table(records: SweepRecords) -> str:
    head, *rows = cells(records)
    lines = [f"<thead><tr>{_row(head, 'th')}</tr></thead>\n<tbody>"]
    for trial, row in zip(records.trials, rows, strict=True):
        kind = "best" if trial is records.best else "" if trial.state == "complete" else "other"
        lines.append(f'<tr class="{kind}">{_row(row, "td")}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _row(row: list[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
