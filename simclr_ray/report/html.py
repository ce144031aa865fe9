"""Pages: one HTML file each that holds its images and needs nothing else, neither scripts nor the network.

They are read on a telephone too, where tables and plots are scrolled in their own boxes, and printed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from simclr_ray.report.marks import Plot
from simclr_ray.storage.location import Location

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Browsers hold a page to what its first line says."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h1, h2 { line-height: 1.2; }
pre { background: #f5f5f5; padding: 0.8rem 1rem; border-radius: 4px; overflow-x: auto; font-size: 0.85rem; }
figure { margin: 1rem 0; overflow-x: auto; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 0.9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
p, figcaption { overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { margin: 1rem auto; } img { max-width: none; width: 40rem; } }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; } h2 { break-after: avoid; } tr, figure { break-inside: avoid; }
  pre { white-space: pre-wrap; } .table, pre, figure { overflow: visible; } th, td { white-space: normal; }
  img { width: auto; max-width: 100%; max-height: 24cm; }
}
tbody tr.best { background: #fdf0e6; font-weight: 600; } tbody tr.other { color: #666; }
"""


def write_page(
    folder: Location, title: str, body: Iterable[str], plots: Sequence[Plot], *, style: str = "", name: str = "index"
) -> Location:
    """Writes NAME.html and the plots, as PNG files too, into `folder`; returns the page's location."""
    for plot in plots:
        if plot.png:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
    lines = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<style>{STYLE}{style}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        *body,
        "</body>\n</html>\n",
    ]
    page = folder / f"{name}.html"
    page.write_bytes("\n".join(lines).encode())
    return page


def figure(plot: Plot) -> str:
    """Its title, image and caption."""
    drawn = ""
    if plot.png:
        data = base64.b64encode(plot.png).decode()
        drawn = f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">\n'
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f"<h2>{escape(plot.title)}</h2>\n<figure>\n{drawn}{caption}\n</figure>"


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """`rows`: the class of a row and its cells."""
    lines = [f"<thead><tr>{_cells(head, 'th')}</tr></thead>\n<tbody>"]
    lines += [f'<tr class="{kind}">{_cells(row, "td")}</tr>' for kind, row in rows]
    return '<div class="table"><table>\n' + "\n".join([*lines, "</tbody>"]) + "\n</table></div>"


def _cells(row: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
