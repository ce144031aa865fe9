"""Rates of whole steps: ours against a bare torchvision loop, and a batch in passes against the passes alone."""

from __future__ import annotations

from statistics import median

from checks.check import Bar, Check, Figures, Machine
from checks.steps import OurStep, bare_step, imagenet, rates

PASSES = 4
GOAL = 1.25
"""What a faster step than the compiler's would be."""


def step_rate(machine: Machine) -> Figures:
    """Images/s; both loops in one process, taking turns."""
    config = imagenet(machine)
    arms = [make(config, machine.device, compiled=machine.on_gpu) for make in (OurStep, bare_step)]
    ours, bare = rates(arms, config.train.global_batch, machine)
    ratio = median(ours) / median(bare)
    note = f"goal {GOAL}{' reached' if ratio >= GOAL else ''}"
    return Figures(ours=median(ours), reference=median(bare), note=note, details={"ours": ours, "bare": bare})


def passes(machine: Machine) -> Figures:
    """Milliseconds for an image of a batch in four passes, and of a batch that is one such pass."""
    config = imagenet(machine)
    batch = config.train.global_batch
    one = config.with_overrides({"train.global_batch": batch // PASSES})
    four = config.with_overrides({"train.pass_size": batch // PASSES})
    found = []
    for each in (four, one):
        step = OurStep(each, machine.device, compiled=machine.on_gpu)
        rate = median(rates([step], each.train.global_batch, machine)[0])
        found.append(1e3 / rate)
    return Figures(ours=found[0], reference=found[1], note=f"{PASSES} passes of {batch // PASSES}")


CHECKS = (
    Check(
        run=step_rate,
        claim="images/s of ResNet-50 at 224, B 512, against a bare compiled torchvision loop",
        bar=Bar(least=0.99),
        limit_s=240,
        judged_on_cpu=False,
    ),
    Check(
        run=passes,
        claim="ms an image in 4 passes, against the same passes as batches of their own",
        bar=Bar(most=1.3),
        limit_s=150,
        judged_on_cpu=False,
    ),
)
