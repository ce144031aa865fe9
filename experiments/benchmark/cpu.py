"""Training on a CPU: ours against a plain torch loop of the same network, batch and threads, in one run.

    python experiments/benchmark/cpu.py [--widths 0.25 1.0] [--against OTHER_CHECKOUT] [--no-steps] [--no-end-to-end]

Two tables of images/s (each image gives two views): the step alone on a fixed batch, and end to end, ours by the
command of a user, the plain loop with its DataLoader and one or two workers. Every turn is a fresh process and the arms
take turns; figures are medians over the rounds. `--against` measures another checkout too, such as the code before a
change.

The plain loop (plain_loop.py) runs as its user would run it: its views come normalised from the data workers, so its
step does not normalise, and it does not call `keep_freed_memory`, as our training workers do on a CPU. End to end both
read the same images, decoded once beforehand; `threads` are torch's in the training process, beside data workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import numpy as np
import torch

from checkout import HERE, environment, prepare, pretrain
from plain_loop import LEAST_ROWS, ROW_STEPS, SKIPPED_ROWS
from simclr_ray.cli.command import parse, run_command
from simclr_ray.config import BadInput
from simclr_ray.data.dataset import SliceReader, open_dataset
from simclr_ray.data.decode import decode
from simclr_ray.storage.run_folder import METRICS

Result = dict[str, Any]
Arms = dict[str, Callable[[], Result]]
LABEL = 54


@dataclass(frozen=True, kw_only=True)
class Arguments:
    widths: tuple[float, ...] = (0.25,)
    """Of the ResNet-18; the tables are printed for each."""
    batch: int = 256
    rounds: int = 3
    """Turns of every arm."""
    against: Path | None = None
    """Another checkout of this repository."""
    steps: bool = True
    """Measure the step alone."""
    seconds: float = 10.0
    """Of a turn of a step, at least 3 steps."""
    processes: int = 2
    """Of the arm that trains in a group; 1: no such arm."""
    force_bf16: bool = False
    """Measure bf16 also on a CPU without instructions for it."""
    end_to_end: bool = True
    """Measure end to end."""
    train_seconds: float = 60.0
    """Of a turn end to end, from the first step, at least 5 rows of 4 steps."""
    data: str = "synthetic:8192"
    """What end to end trains on: anything that prepare takes, all images of one size."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    threads = len(os.sched_getaffinity(0))
    against = [arguments.against.resolve()] if arguments.against else []
    checkouts = {"ours": HERE} | {f"ours in {path.name}": path for path in against}
    with TemporaryDirectory() as folder:
        if arguments.end_to_end:
            images = _prepare(arguments.data, checkouts, Path(folder))
        for width in arguments.widths:
            print(f"\nResNet-18, width {width:g}, batch {arguments.batch}, {threads} threads", flush=True)
            if arguments.steps:
                _print_steps(_in_turns(_step_arms(arguments, width, threads, checkouts), arguments.rounds))
            if arguments.end_to_end:
                arms = _end_to_end_arms(arguments, width, threads, checkouts, images, Path(folder))
                _print_end_to_end(_in_turns(arms, arguments.rounds))


def _in_turns(arms: Arms, rounds: int) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            results[name].append(arm())
            print(f"  {name}: {results[name][-1]['images_per_s']:.0f} images/s", file=sys.stderr, flush=True)
    return results


def _script(checkout: Path, script: str, **flags: object) -> Result:
    """The last line that a script beside this one prints, run with the package of `checkout`."""
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    printed = subprocess.run(command, env=environment(checkout), check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def _step_arms(arguments: Arguments, width: float, threads: int, checkouts: dict[str, Path]) -> Arms:
    same = {"width": width, "batch": arguments.batch, "seconds": arguments.seconds}
    arms: Arms = {"plain loop, float32": partial(_script, HERE, "plain_loop.py", **same, threads=threads)}
    variants: dict[str, dict[str, object]] = {"float32": {"threads": threads}}
    if _bf16(arguments):
        variants["bf16"] = {"threads": threads, "precision": "bf16"}
    else:
        print("bf16 skipped: this CPU has no AVX512-BF16 or AMX")
    if arguments.processes > 1:
        split = {"threads": max(1, threads // arguments.processes), "processes": arguments.processes}
        variants[f"float32, {split['processes']} processes of {split['threads']} threads"] = split
    for label, checkout in checkouts.items():
        for variant, flags in variants.items():
            arms[f"{label}, {variant}"] = partial(_script, checkout, "our_step.py", **same, **flags)
    return arms


def _bf16(arguments: Arguments) -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return arguments.force_bf16 or any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def _print_steps(results: dict[str, list[Result]]) -> None:
    sizes = {result["encoder_parameters"] for turns in results.values() for result in turns}
    assert len(sizes) == 1, f"the encoders differ: {sizes}"
    print(f"\nstep alone, encoder of {sizes.pop():,} parameters")
    _print_rates(results)
    print("\nshares of the step, %")
    for name, turns in results.items():
        if "shares" in turns[0]:
            shares = {part: 100 * median(turn["shares"][part] for turn in turns) for part in turns[0]["shares"]}
            print(f"{name:<{LABEL}}" + "  ".join(f"{part} {share:.1f}" for part, share in shares.items()))


def _print_rates(results: dict[str, list[Result]], *, baseline: str | None = None) -> None:
    rates = {name: [turn["images_per_s"] for turn in turns] for name, turns in results.items()}
    unit = median(rates[baseline or next(iter(rates))])
    waited = any("data_wait_fraction" in turn for turns in results.values() for turn in turns)
    heading = f"{'':<{LABEL}}{'images/s':>9}{'min':>7}{'max':>7}{'ratio':>7}"
    print(heading + (f"{'data wait':>11}" if waited else ""))
    for name, turns in rates.items():
        wait = f"{median(turn['data_wait_fraction'] for turn in results[name]):>11.1%}" if waited else ""
        figures = f"{median(turns):>9.0f}{min(turns):>7.0f}{max(turns):>7.0f}{median(turns) / unit:>7.2f}"
        print(f"{name:<{LABEL}}{figures}{wait}", flush=True)


def _prepare(data: str, checkouts: dict[str, Path], folder: Path) -> Path:
    """A dataset for each checkout, and the file with all images decoded that the plain loop reads."""
    for i, checkout in enumerate(checkouts.values()):
        prepare(checkout, data, folder / f"data-{i}")
    dataset = open_dataset(str(folder / "data-0"))
    tables = SliceReader(dataset).rows(0, dataset.rows)
    images = [decode(image) for table in tables for image in table["image"].to_pylist()]
    if len({image.shape for image in images}) > 1:
        raise BadInput(f"--data {data}: the plain loop holds all images in one array, these have several sizes")
    np.save(folder / "images.npy", np.stack(images))
    return folder / "images.npy"


def _end_to_end_arms(
    arguments: Arguments, width: float, threads: int, checkouts: dict[str, Path], images: Path, folder: Path
) -> Arms:
    same = {"width": width, "batch": arguments.batch, "seconds": arguments.train_seconds, "threads": threads}
    arms: Arms = {
        f"plain loop, DataLoader of {workers}": partial(
            _script, HERE, "plain_loop.py", **same, images=images, workers=workers
        )
        for workers in (1, 2)
    }
    variants: dict[str, list[object]] = {"as typed": [], f"threads {threads}": ["--resources.threads", threads]}
    if _bf16(arguments):
        variants[f"threads {threads}, bf16"] = ["--resources.threads", threads, "--train.precision", "bf16"]
    for i, (label, checkout) in enumerate(checkouts.items()):
        command = ["cifar10_rn18_200ep", "--data.train", folder / f"data-{i}", "--model.width", width]
        command += ["--train.global-batch", arguments.batch, "--evaluate.every-epochs", 0]
        command += ["--resources.cache-dir", folder / f"cache-{i}", "--logging.every-steps", ROW_STEPS]
        for variant, more in variants.items():
            arms[f"{label}, {variant}"] = partial(_trained, checkout, [*command, *more], arguments.train_seconds)
    return arms


def _trained(checkout: Path, flags: Sequence[object], seconds: float) -> Result:
    """A run of the user's command, interrupted `seconds` after its first step."""
    with TemporaryDirectory() as storage:
        run = pretrain(checkout, flags, Path(storage), "end-to-end")
        try:
            run.wait_until(run.first_step_done)
            until = time() + seconds
            run.wait_until(lambda: time() > until and len(run.rows(METRICS)) >= LEAST_ROWS, seconds + 600)
        finally:
            run.interrupt()
        rows = run.rows(METRICS)[SKIPPED_ROWS:]
    return {
        "images_per_s": median(row["images_per_s"] for row in rows),
        "data_wait_fraction": mean(row["data_wait_fraction"] for row in rows),
    }


def _print_end_to_end(results: dict[str, list[Result]]) -> None:
    plain = [name for name in results if name.startswith("plain loop")]
    better = max(plain, key=lambda name: median(turn["images_per_s"] for turn in results[name]))
    print(f"\nend to end, against the better plain loop ({better})")
    _print_rates(results, baseline=better)


if __name__ == "__main__":
    run_command(main)
