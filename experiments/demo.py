"""Pretrains the quickstart recipe on pictures that the package draws itself, and says what was learnt."""

from __future__ import annotations

from recipes import quickstart
from simclr_ray.command import run_command


def main(argv: list[str]) -> None:
    from simclr_ray.export import FILE_NAME, loading_lines
    from simclr_ray.orchestrate.evaluate import evaluate_run
    from simclr_ray.orchestrate.pretrain import pretrain

    config = quickstart()
    assert config.evaluate.test is not None
    result = pretrain(config, "demo", "runs")
    row = evaluate_run(result.path, "knn", config.data.train, config.evaluate.test, baselines=True)
    found = row["results"]
    print(f"""
kNN accuracy on {row["test_rows"]} drawn pictures of 10 classes (chance is 10 %):
  raw pixels         {found["pixels"]["top1"]:5.1f} %
  untrained encoder  {found["untrained"]["top1"]:5.1f} %
  after {result.step} steps    {found["pretrained"]["top1"]:5.1f} %

run      {result.path}   (metrics.jsonl, events.jsonl, tensorboard/, checkpoints)
encoder  {result.path}/{FILE_NAME}
""")
    print(loading_lines(f"{result.path}/{FILE_NAME}", config.model.arch, width=config.model.width, stem="cifar"))


if __name__ == "__main__":
    run_command(main)
