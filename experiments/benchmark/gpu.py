"""Every claim that this project makes about a GPU, measured on this machine: a table with a bar for each.

    make gpu        or        python experiments/benchmark/gpu.py [--out FOLDER] [--only NAME...] [--data CIFAR10]
    python experiments/benchmark/gpu.py --list      every check with its bar
    python experiments/benchmark/gpu.py --cpu       what a CPU can run, at small sizes: it tries the code, no rate

Each check is a process of its own with a time limit, so that none can take the others down. Its row is printed as it
ends; FOLDER gets report.json and what each check prints. All checks have nine minutes together: what does not fit into
them is skipped. Exit code 1 if a check failed. It needs what the project needs, without Ray but for one check.

Untried: no GPU was at hand when this was written, so the times that the checks take there are guessed. On a CPU, in the
tests, the same functions run but for these parts: NCCL, the compiler's code for GPUs, CUDA's own figures of memory, of
kernels and of host synchronisation, and the sizes.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic

import torch

from checks import CHECKS
from checks.check import Check, Failed, Figures, Machine, Skip
from checks.process import in_process
from simclr_ray.cli.command import parse, run_command
from simclr_ray.config import BadInput
from simclr_ray.config.suggest import suggestion
from simclr_ray.model import batchnorm

TOTAL_S = 540.0
NAME, FIGURE, BAR, VERDICT = 16, 11, 10, 5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    cpu: bool = False
    """Run what a CPU can run, at small sizes."""
    list: bool = False
    """Print the checks with their bars, and run none."""
    only: tuple[str, ...] = ()
    """Names of the checks to run; none: all."""
    out: Path | None = None
    """Folder for report.json and what each check prints; None: one below the system's temporary folder."""
    data: str | None = None
    """CIFAR-10, as prepare takes it, for the shortened recipe; None: synthetic images."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a check."""

    name: str
    claim: str
    bar: str
    verdict: str
    """pass, fail, skip, or ran: without a bar."""
    seconds: float
    reason: str = ""
    """Of a failure or a skip."""
    figures: Figures | None = None

    def __str__(self) -> str:
        found = self.figures
        numbers = (found.ours, found.reference, found.ratio) if found else (None, None, None)
        cells = "".join(f"{'-' if number is None else format(number, '.4g'):>{FIGURE}}" for number in numbers)
        text = self.reason or (found.note if found else "")
        return f"{self.name:<{NAME}}{cells}  {self.bar:<{BAR}}{self.verdict:<{VERDICT}}{self.seconds:>6.1f} s  {text}"


def main(argv: list[str]) -> int:
    arguments = parse(Arguments, argv, description=__doc__)
    checks = _chosen(arguments.only)
    if arguments.list:
        for check in checks:
            print(f"{check.name:<{NAME}}{check.bar!s:<{BAR}} {check.claim}")
        return 0
    out = arguments.out or Path(tempfile.mkdtemp(prefix="simclr_ray-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    device = "CPU" if arguments.cpu else _gpu(out)
    cores = len(os.sched_getaffinity(0))
    print(f"{device}, {cores} cores, torch {torch.__version__}\n")
    print(f"{'':<{NAME}}" + "".join(f"{head:>{FIGURE}}" for head in ("ours", "reference", "ratio")) + "  bar")
    rows: list[Row] = []
    deadline = monotonic() + TOTAL_S
    for check in checks:
        machine = Machine(
            device=torch.device("cpu" if arguments.cpu else "cuda"),
            cores=cores,
            data=arguments.data,
            measured={row.name: row.figures for row in rows if row.figures},
        )
        rows.append(_row(check, machine, deadline - monotonic(), out))
        print(rows[-1], flush=True)
        report = {"device": device, "cores": cores, "torch": torch.__version__, "checks": list(map(asdict, rows))}
        (out / "report.json").write_text(json.dumps(report, indent=1))
    print(f"\n{out}/report.json")
    return int(any(row.verdict == "fail" for row in rows))


def _chosen(names: tuple[str, ...]) -> list[Check]:
    known = [check.name for check in CHECKS]
    for name in names:
        if name not in known:
            raise BadInput(f"--only {name}: no such check{suggestion(name, known)}")
    return [check for check in CHECKS if not names or check.name in names]


def _gpu(out: Path) -> str:
    """Its name. Raises BadInput where there is none."""
    try:
        return in_process(torch.cuda.get_device_name, 60.0, out / "gpu.txt")
    except Failed as reason:
        raise BadInput(f"no GPU that torch can use ({reason}): --cpu runs what a CPU can") from None


def _row(check: Check, machine: Machine, left_s: float, out: Path) -> Row:
    row = partial(Row, name=check.name, claim=check.claim, bar=str(check.bar))
    if left_s <= 0:
        return row(verdict="skip", seconds=0.0, reason=f"the {TOTAL_S:.0f} s of all checks are over")
    before = monotonic()
    try:
        figures = in_process(partial(_measure, check, machine), min(check.limit_s, left_s), out / f"{check.name}.txt")
    except Skip as reason:
        return row(verdict="skip", seconds=monotonic() - before, reason=str(reason))
    except Failed as reason:
        return row(verdict="fail", seconds=monotonic() - before, reason=str(reason))
    if machine.on_gpu or check.judged_on_cpu:
        verdict = "pass" if check.bar.met(figures) else "fail"
    else:
        verdict = "ran"
    return row(verdict=verdict, seconds=monotonic() - before, figures=figures)


def _measure(check: Check, machine: Machine) -> Figures:
    """Ours computes as on a GPU on a CPU too."""
    batchnorm.has_fused_kernels = lambda x: False  # this process ends with the check
    return check.run(machine)


if __name__ == "__main__":
    run_command(main)
