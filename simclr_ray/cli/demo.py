"""Pretrains the quickstart recipe on synthetic images, and prints its accuracy: python experiments/demo.py."""

from __future__ import annotations

from dataclasses import dataclass

from simclr_ray.cli.command import parse
from simclr_ray.config import Config
from simclr_ray.recipes import quickstart


@dataclass(frozen=True, kw_only=True)
class Arguments:
    storage: str = "runs"
    """Folder or object-store URI for the run, which is named demo, and its data."""


def main(argv: list[str]) -> None:
    demo(quickstart(), parse(Arguments, argv, description=__doc__).storage)


def demo(config: Config, storage: str) -> None:
    """Pretrains, and prints accuracies, addresses and the lines that load the encoder."""
    from simclr_ray.export.encoder import loading_lines
    from simclr_ray.orchestrate.evaluate import evaluate_run
    from simclr_ray.orchestrate.pretrain import pretrain
    from simclr_ray.storage.location import open_location
    from simclr_ray.storage.run_folder import ENCODER  # takes seconds to import: wrong flags are reported first

    assert config.evaluate.test is not None
    result = pretrain(config, "demo", storage)
    row = evaluate_run(result.path, "knn", config.data.train, config.evaluate.test, baselines=True)
    found = row["results"]
    encoder, trained = open_location(result.path) / ENCODER, f"after {result.step} steps"
    print(f"""
kNN accuracy on {row["test_rows"]} synthetic images of 10 classes (chance is 10 %):
  raw pixels         {found["pixels"]["top1"]:5.1f} %
  untrained encoder  {found["untrained"]["top1"]:5.1f} %
  {trained:<19}{found["pretrained"]["top1"]:5.1f} %

run      {result.path}   (metrics.jsonl, events.jsonl, tensorboard/, checkpoints)
encoder  {encoder}
""")
    print(loading_lines(encoder, config))
