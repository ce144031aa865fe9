"""Draws the README's figures again: a run that lost a machine, over time, and images beside their views.

    python experiments/benchmark/figures.py [--out docs]

Trains on a local cluster of two nodes for some minutes, and kills one of them. The figures are those of the page of
a run, with fewer colours and pixels, so that they stay small.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

import sklearn.datasets
from PIL import Image

from checkout import HERE
from recovery import Trial
from simclr_ray.cli.command import parse, run_command
from simclr_ray.recipes import imagenet_rn50_b256_100ep
from simclr_ray.report.goodput import account
from simclr_ray.report.run_plots import run_plots
from simclr_ray.report.views import images_in, views_sheet
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row

SETTINGS = """quickstart --name run --data.train synthetic:1024 --train.epochs 100000 --evaluate.every-epochs 15
--evaluate.test synthetic:512:test --augment.size 16 --model.width 0.125 --train.global-batch 128
--optim.lr-per-256 0.5 --logging.every-steps 4 --saving.every-s 15
--resources.cpus-per-worker 1.5 --resources.data-cpus 0.5 --resources.threads 1"""
UNDISTURBED_S = 20
WIDTH = 1000
PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"
"""Two, by danielbuechele and vultilion, under CC BY 2.0: scikit-learn comes with them."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    out: Path = HERE / "docs"


def disturbed_run() -> tuple[list[Row], list[Row]]:
    """Events and metrics of a run of two workers, one of whose nodes is killed, and replaced later."""
    with TemporaryDirectory() as storage:
        trial = Trial(HERE, Path(storage), SETTINGS)
        try:
            trial.trains_with(2)
            sleep(UNDISTURBED_S)
            trial.kill_node()
            trial.trains_with(1)
            sleep(UNDISTURBED_S)
            trial.add_node()
            trial.trains_with(2)
            sleep(UNDISTURBED_S)
            return trial.rows(EVENTS), trial.rows(METRICS)
        finally:
            trial.end()


def small(png: bytes, colors: int) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.quantize(colors, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    config = imagenet_rn50_b256_100ep()
    events, rows = disturbed_run()
    over_time, _ = run_plots(events, rows, account(events, rows))
    assert over_time.png
    views = views_sheet(images_in(str(PHOTOGRAPHS), 2), config.train.seed, config.augment)
    arguments.out.mkdir(exist_ok=True)
    for name, png, colors in (("run.png", over_time.png, 32), ("views.png", views, 128)):
        (arguments.out / name).write_bytes(small(png, colors))
        print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    run_command(main)
