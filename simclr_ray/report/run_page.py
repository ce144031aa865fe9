"""A run's report as one HTML page in its folder report/: its progress on one time axis, goodput, views, accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from time import time

from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import open_dataset
from simclr_ray.evaluate.results import OURS
from simclr_ray.report.goodput import account
from simclr_ray.report.goodput import table as goodput_table
from simclr_ray.report.html import figure, table, write_page
from simclr_ray.report.marks import Plot
from simclr_ray.report.run import RunRecords, summary
from simclr_ray.report.run_plots import run_plots
from simclr_ray.report.views import images_of, views_sheet
from simclr_ray.report.worth import NOTE, worth_of
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import EVALUATIONS, FEATURE_MAP, NEAREST, REPORT, Row, read_config, read_rows

SHOWN = 6
"""Images whose views are shown."""
HEAD = ("evaluation", "trained on", "tested on", "encoder", "top-1 %", "top-5 %")
STYLE = """
.accuracies :is(th, td):not(:nth-last-child(-n + 2)) { text-align: left; }
"""
ENCODER_PLOTS = {
    FEATURE_MAP: (
        "The features of the test images",
        "The first two principal components of the features, of unit length, of up to 2,000 test images. It is a "
        "projection: classes that lie apart here lie apart in the features, those that overlap here need not overlap "
        "there.",
    ),
    NEAREST: (
        "Nearest neighbours",
        "The first six test images, framed, and the training images whose features are nearest, with their cosines.",
    ),
}
"""Title and caption of the plots that `report --against` left."""


def write_run_page(run: RunRecords) -> Location:
    """Writes the page of a run and its plots, and returns the page's location. Raises OSError if it cannot."""
    folder = open_location(run.address)
    config, now = read_config(folder), time()
    goodput = account(run.events, run.rows, now=now if run.state == "running" else None)
    plots = [*run_plots(run.events, run.rows, goodput), *([_views(config)] if config else []), *_encoder_plots(folder)]
    body = _body(run, config, goodput_table(goodput), plots, read_rows(folder / EVALUATIONS))
    return write_page(folder / REPORT, f"Run {folder.name}", body, plots, style=STYLE)


def _body(
    run: RunRecords, config: Config | None, spent: str, plots: Sequence[Plot], evaluations: Sequence[Row]
) -> Iterator[str]:
    yield f"<pre>{escape(summary(run))}</pre>"
    if config:
        yield f"<p>{escape(_described(config))}</p>"
    worth = worth_of(evaluations)
    if worth:
        verdicts = "".join(f"<li>{escape(verdict)}</li>" for verdict in worth.verdicts)
        yield f"<h2>Was it worth it?</h2>\n<ul>{verdicts}</ul>"
        yield table(worth.head, worth.rows)
        data = f"Trained on {worth.train}, tested on {worth.test_rows:,} images of {worth.test}."
        yield f'<p class="note">{escape(data)} {NOTE}</p>'
    others = [row for row in evaluations if not (worth and worth.replaces(row))]
    if others:
        yield '<h2>Accuracies</h2>\n<div class="accuracies">'
        yield table(HEAD, ((kind, cells) for row in others for kind, cells in _accuracies(row)))
        yield "</div>"
    yield from (figure(plot) for plot in plots)
    yield f"<h2>The account in full</h2>\n<pre>{escape(spent)}</pre>"
    if config:
        content = escape(config.to_json())
        yield f"<h2>Configuration</h2>\n<details><summary>config.json</summary><pre>{content}</pre></details>"


def _described(config: Config) -> str:
    network = f"{config.model.arch}, width {config.model.width:g}" if config.model.width != 1 else config.model.arch
    return (
        f"{config.method.name} of {network} on {config.data.train}: {config.train.epochs} epochs of views of "
        f"{config.augment.size} px, global batch {config.train.global_batch:,}, seed {config.train.seed}, "
        f"{config.train.precision}."
    )


def _accuracies(row: Row) -> Iterator[tuple[str, list[str]]]:
    """The cells of each encoder that one evaluation scored; that which was pretrained stands out."""
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    for name, found in row["results"].items():
        figures = [f"{found[key]:.2f}" for key in ("top1", "top5")]
        label = f"{row['method']} ({settings})" if settings else row["method"]
        yield "best" if name == OURS else "", [label, row["train"], row["test"], name, *figures]


def _encoder_plots(folder: Location) -> Iterator[Plot]:
    for name, (title, caption) in ENCODER_PLOTS.items():
        file = folder / REPORT / name
        if file.exists():
            yield Plot(name=name.removesuffix(".png"), title=title, caption=caption, png=file.read_bytes())


def _views(config: Config) -> Plot:
    title = "Images and the views of the first epoch"
    try:
        sheet = views_sheet(images_of(open_dataset(config.data.train), SHOWN), config.train.seed, config.augment)
    except (BadInput, OSError) as error:
        return Plot(name="views", title=title, caption=f"The data cannot be read from here: {error}", png=None)
    caption = "An image in each row, then its views with what was drawn for them: crop, flip, colours, blur."
    return Plot(name="views", title=title, caption=caption, png=sheet)
