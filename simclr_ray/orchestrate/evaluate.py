"""A finished run judged by kNN or a linear probe, beside the baselines that it has to beat."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import torch

from simclr_ray.config import BadInput, EvaluateConfig
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.accuracy import Accuracy
from simclr_ray.evaluate.features import Features, Pixels, extract
from simclr_ray.evaluate.images import View, centered, cropped, read_images
from simclr_ray.evaluate.knn import knn_accuracy
from simclr_ray.evaluate.labels import require_same_classes
from simclr_ray.evaluate.linear import ProbeConfig, probe_accuracy, probe_config, train_probe
from simclr_ray.export.encoder import Pretrained, encoder_file, load_pretrained
from simclr_ray.methods.build import build_encoder
from simclr_ray.model.resnet import ResNet
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVALUATIONS

PIXELS_SIZE = 32
# The paper's 0.1 suits the scale of trained features. On 10,000 images of CIFAR-10 the pixels reach 29 % with it and
# 37 % with 0.001, an untrained ResNet-18 24 % and, with 1.0, 30 %.
BASELINE_RATES = (1.0, 0.1, 0.01, 0.001)

Judge = Callable[[list[Features], Features], Accuracy]
"""From the features of the training images, one entry for each copy of them, and those of the test images."""


@dataclass(frozen=True, kw_only=True)
class _Method:
    settings: dict[str, Any]
    train_views: list[View]
    judge: Judge
    judge_baseline: Judge


@dataclass(frozen=True, kw_only=True)
class _Contender:
    name: str
    encoder: ResNet | Pixels
    size: int
    """Side of the images that it takes, at most that of the run's views."""
    judge: Judge


def evaluate_run(
    run: str,
    method: Literal["knn", "linear"],
    train: str,
    test: str,
    *,
    baselines: bool = False,
    crops: int = 0,
    neighbours: int = EvaluateConfig.neighbours,
    temperature: float = EvaluateConfig.temperature,
    seed: int = 0,
) -> dict[str, Any]:
    """Judges the encoder of a run folder or file, on a GPU if there is one, and appends the row to evaluation.jsonl.

    `train` and `test` are datasets, or anything that prepare takes: it is then prepared once beside the run folder.
    `crops`: cropped and flipped copies of each training image for the probe; 0: its centre. With `baselines` the
    encoder stands beside its own untrained weights and the pixels themselves at 32 x 32, either with the best of
    BASELINE_RATES on the test set: a baseline is to be beaten at its best.

    The row: method, settings, addresses, rows, images left out as bad and, under `results`, top1 and top5 in
    percent of each contender, `pretrained` first. Raises BadInput for a run without an encoder, and for data without
    labels or with other classes.
    """
    _require_settings(neighbours, temperature, crops, seed)
    pretrained, folder = load_pretrained(run), encoder_file(run).parent
    storage = folder.parent.uri
    sets = prepare_into(storage, train), prepare_into(storage, test)
    require_same_classes(*sets)
    if method == "knn":
        plan = _knn(pretrained.size, neighbours, temperature)
    else:
        plan = _linear(pretrained.size, probe_config(sets[0].rows), crops, seed)
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "method": method, "settings": plan.settings}
    row |= {"train": train, "test": test} | _compare(pretrained, plan, *sets, baselines)
    _append(folder / EVALUATIONS, row)
    return row


def summary(row: dict[str, Any]) -> str:
    """A row of evaluation.jsonl as a small table."""
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    lines = [
        f"{row['method']} ({settings})",
        f"trained on {row['train_rows']:,} images, tested on {row['test_rows']:,}, {row['bad']:,} bad ones left out",
        f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}",
    ]
    lines += [f"{name:<12}{found['top1']:>9.2f}{found['top5']:>9.2f}" for name, found in row["results"].items()]
    return "\n".join(lines)


def _compare(pretrained: Pretrained, plan: _Method, train: Dataset, test: Dataset, baselines: bool) -> dict[str, Any]:
    results: dict[str, dict[str, float]] = {}
    for contender in _contenders(pretrained, plan, baselines):
        known = [_features(contender, pretrained, train, view) for view in plan.train_views]
        asked = _features(contender, pretrained, test, centered(pretrained.size))
        found = contender.judge(known, asked)
        results[contender.name] = {"top1": round(found.top1, 3), "top5": round(found.top5, 3)}
    rows = {"train_rows": len(known[0].labels), "test_rows": len(asked.labels), "bad": known[0].bad + asked.bad}
    return rows | {"results": results}


def _features(contender: _Contender, pretrained: Pretrained, dataset: Dataset, view: View) -> Features:
    def sized(sample_id: int, image: Any) -> Any:
        pixels = view(sample_id, image)
        return pixels if contender.size == pretrained.size else center_view(pixels, contender.size)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    contender.encoder.to(device).to(memory_format=torch.channels_last)
    images = read_images(dataset, sized, threads=os.cpu_count() or 1)
    return extract(contender.encoder, images, pretrained.mean, pretrained.std, device)


def _contenders(pretrained: Pretrained, plan: _Method, baselines: bool) -> list[_Contender]:
    """The encoder, and baselines that see the same views under the same mean and std."""
    size = pretrained.size
    contenders = [_Contender(name="pretrained", encoder=pretrained.encoder, size=size, judge=plan.judge)]
    if baselines:
        config, small = pretrained.config, min(size, PIXELS_SIZE)
        untrained = build_encoder(config.model, config.train.seed)
        contenders += [
            _Contender(name="untrained", encoder=untrained, size=size, judge=plan.judge_baseline),
            _Contender(name="pixels", encoder=Pixels(small), size=small, judge=plan.judge_baseline),
        ]
    return contenders


def _knn(size: int, neighbours: int, temperature: float) -> _Method:
    def judge(known: list[Features], asked: Features) -> Accuracy:
        bank = known[0]
        classes = _class_count(bank, asked)
        return knn_accuracy(
            asked.h, asked.labels, bank.h, bank.labels, classes=classes, neighbours=neighbours, temperature=temperature
        )

    settings = {"neighbours": neighbours, "temperature": temperature}
    return _Method(settings=settings, train_views=[centered(size)], judge=judge, judge_baseline=judge)


def _linear(size: int, config: ProbeConfig, crops: int, seed: int) -> _Method:
    def judge(rates: tuple[float, ...], known: list[Features], asked: Features) -> Accuracy:
        copies, labels, classes = (
            torch.stack([copy.h for copy in known]),
            known[0].labels,
            _class_count(known[0], asked),
        )
        configs = [replace(config, lr_per_256=rate) for rate in rates]
        probes = [train_probe(copies, labels, classes=classes, config=each, seed=seed) for each in configs]
        return max(probe_accuracy(probe, asked.h, asked.labels) for probe in probes)

    return _Method(
        settings={**asdict(config), "crops": crops, "seed": seed},
        train_views=[cropped(size, seed, copy) for copy in range(crops)] or [centered(size)],
        judge=partial(judge, (config.lr_per_256,)),
        judge_baseline=partial(judge, BASELINE_RATES),
    )


def _class_count(known: Features, asked: Features) -> int:
    classes, top = int(known.labels.max()) + 1, int(asked.labels.max())
    if top >= classes:
        raise BadInput(f"the test images have labels up to {top}, the training images only up to {classes - 1}")
    return classes


def _require_settings(neighbours: int, temperature: float, crops: int, seed: int) -> None:
    EvaluateConfig(neighbours=neighbours, temperature=temperature)  # which checks them
    if crops < 0 or not 0 <= seed < 2**63:
        raise BadInput(f"crops must not be negative, and seed must lie in 0..2^63 - 1; they are {crops} and {seed}")


def _append(location: Location, row: dict[str, Any]) -> None:
    # An object store cannot append, so the whole file is written again: a few hundred bytes for each evaluation.
    line = json.dumps(row)
    try:
        before = location.read_bytes() if location.exists() else b""
        location.write_bytes(before + line.encode() + b"\n")
    except OSError as error:
        raise BadInput(f"cannot write {location}: {str(error).splitlines()[0]}; the result is {line}") from None
