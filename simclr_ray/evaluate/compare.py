"""A pretrained encoder scored beside the baselines that it has to beat."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from simclr_ray.config import BadInput, Config, EvaluateConfig
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.prepare.subset import balanced_part
from simclr_ray.evaluate.features import Features, Pixels, extract
from simclr_ray.evaluate.images import View, centered, cropped, read_images
from simclr_ray.evaluate.knn import KnnConfig
from simclr_ray.evaluate.linear import probe_config
from simclr_ray.evaluate.logistic import LogisticConfig, TransferConfig, choose_l2
from simclr_ray.evaluate.results import BASELINES, OURS
from simclr_ray.evaluate.score import Classifier, accuracy, predict
from simclr_ray.methods.build import build_encoder
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.initial import load_initial
from simclr_ray.storage.run_folder import Row

PIXELS_SIZE = 32
# The paper's 0.1 suits the scale of trained features. On 10,000 images of CIFAR-10 the pixels reach 29 % with it and
# 37 % with 0.001, an untrained ResNet-18 24 % and, with 1.0, 30 %.
BASELINE_RATES = (1.0, 0.1, 0.01, 0.001)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    name: str
    encoder: Encoder
    size: int
    """Side in pixels of the images that it takes, at most that of the views."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """How its images are normalised."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How candidates are scored: the views of the images, and the classifiers of their features."""

    settings: dict[str, Any]
    """For the row."""
    bank_views: list[View]
    query_view: View
    classifiers: list[Classifier | TransferConfig]
    """For the pretrained encoder."""
    baseline_classifiers: list[Classifier | TransferConfig]
    """For all others, of which the best one on the queries counts."""
    seed: int
    """Of the order of a linear classifier's batches, and of the images on which transfer chooses its strength."""

    def classifiers_of(self, candidate: Candidate) -> list[Classifier | TransferConfig]:
        """Another pretrained encoder gets both: an equal one shall not be judged the worse."""
        if candidate.name == OURS:
            return self.classifiers
        own = [] if candidate.name in BASELINES else self.classifiers
        return [*own, *(one for one in self.baseline_classifiers if one not in own)]


def require_settings(neighbours: int, temperature: float, crops: int, seed: int) -> None:
    """Raises BadInput for a setting out of its range."""
    EvaluateConfig(neighbours=neighbours, temperature=temperature)  # which checks them
    if crops < 0 or not 0 <= seed < 2**63:
        raise BadInput(f"crops must not be negative, and seed must lie in 0..2^63 - 1; they are {crops} and {seed}")


def by_knn(size: int, neighbours: int, temperature: float) -> Scoring:
    """kNN on centre views of side `size`."""
    knn, view = KnnConfig(neighbours=neighbours, temperature=temperature), centered(size)
    return Scoring(
        settings=asdict(knn),
        bank_views=[view],
        query_view=view,
        classifiers=[knn],
        baseline_classifiers=[knn],
        seed=0,
    )


def by_linear(size: int, bank_rows: int, crops: int, seed: int) -> Scoring:
    """A linear classifier, trained on `crops` random views of each image of the bank, or for 0 on its centre view.

    A baseline gets the learning rate of BASELINE_RATES that is best on the queries: it is to be beaten at its best.
    """
    probe = probe_config(bank_rows)
    return Scoring(
        settings=asdict(probe) | {"crops": crops, "seed": seed},
        bank_views=[cropped(size, seed, copy) for copy in range(crops)] or [centered(size)],
        query_view=centered(size),
        classifiers=[probe],
        baseline_classifiers=[replace(probe, lr_per_256=rate) for rate in BASELINE_RATES],
        seed=seed,
    )


def by_transfer(size: int, seed: int) -> Scoring:
    """Logistic regression on centre views (SimCLR, appendix B.8); a baseline's strength is chosen in the same way."""
    transfer, view = TransferConfig(), centered(size)
    grid = f"{len(transfer.grid)} from {min(transfer.grid):g} to {max(transfer.grid):g}"
    return Scoring(
        settings={"l2": grid, "validation": transfer.validation, "seed": seed},
        bank_views=[view],
        query_view=view,
        classifiers=[transfer],
        baseline_classifiers=[transfer],
        seed=seed,
    )


def baselines_of(config: Config, size: int, initial: Mapping[str, Tensor] | None = None) -> list[Candidate]:
    """The run's untrained weights, drawn from its seed, and the pixels themselves at 32 x 32 or the smaller `size`.

    `initial`: the weights that the run started from instead, which are a baseline too.
    """
    untrained = build_encoder(config.model, config.train.seed, size=config.augment.size)
    encoders: dict[str, Encoder] = {"untrained": untrained}
    if initial is not None:
        encoders["initial"] = deepcopy(untrained)
        load_initial(encoders["initial"], initial, str(config.model.init))
    small, mean, std = min(size, PIXELS_SIZE), config.data.mean, config.data.std
    found = [Candidate(name=name, encoder=encoders[name], size=size, mean=mean, std=std) for name in encoders]
    return [*found, Candidate(name="pixels", encoder=Pixels(small), size=small, mean=mean, std=std)]


def compare(candidates: Sequence[Candidate], scoring: Scoring, bank: Dataset, queries: Dataset) -> Row:
    """What each candidate reaches, on a GPU if there is one; all see the same views.

    The row: `train_rows` and `test_rows`, the images used of the bank and of the queries; `bad`, those that could not
    be decoded; `results`, by candidate top1, top5 and mean_per_class in percent, and the l2 that transfer has chosen.
    Raises BadInput for labels that the bank lacks.
    """
    results: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        bank_features = [features_of(candidate, bank, view) for view in scoring.bank_views]
        query_features = features_of(candidate, queries, scoring.query_view)
        predicted, classifier = best_prediction(candidate, scoring, query_features, bank_features)
        results[candidate.name] = accuracy(predicted, query_features.labels).row()
        if isinstance(classifier, LogisticConfig):
            results[candidate.name]["l2"] = classifier.l2
    return counts_of(bank_features[0], query_features) | {"results": results}


def counts_of(bank: Features, queries: Features) -> Row:
    """The images used of each, and how many of both could not be decoded."""
    return {"train_rows": len(bank.labels), "test_rows": len(queries.labels), "bad": bank.bad + queries.bad}


def features_of(candidate: Candidate, dataset: Dataset, view: View) -> Features:
    """Those of every image of a dataset, on all the cores of this machine, or its GPU."""

    def sized(sample_id: int, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        pixels = view(sample_id, image)
        return pixels if len(pixels) == candidate.size else center_view(pixels, candidate.size)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidate.encoder.to(device).to(memory_format=torch.channels_last)
    images = read_images(dataset, sized, threads=os.cpu_count() or 1)
    return extract(candidate.encoder, images, candidate.mean, candidate.std, device)


def best_prediction(
    candidate: Candidate, scoring: Scoring, queries: Features, bank: list[Features]
) -> tuple[Int64[Tensor, "n ranks"], Classifier]:
    """The classes of the queries by the classifier that is right most often, and that one.

    `bank`: of one or more views of the same images. Raises BadInput for labels that the bank lacks.
    """
    labels, views = bank[0].labels, [view.h for view in bank]
    classes, highest = int(labels.max()) + 1, int(queries.labels.max())
    if highest >= classes:
        raise BadInput(f"the test images have labels up to {highest}, the training images only up to {classes - 1}")
    classifiers = [_resolved(one, bank[0], classes, scoring.seed) for one in scoring.classifiers_of(candidate)]
    predictions = [
        (predict(queries.h, views, labels, classifier, classes=classes, seed=scoring.seed), classifier)
        for classifier in classifiers
    ]
    return max(predictions, key=lambda pair: accuracy(pair[0], queries.labels))


def _resolved(classifier: Classifier | TransferConfig, bank: Features, classes: int, seed: int) -> Classifier:
    """The classifier itself, or transfer's with the strength that is chosen on a part of the bank."""
    if not isinstance(classifier, TransferConfig):
        return classifier
    held_out = torch.zeros_like(bank.labels, dtype=torch.bool)
    held_out[torch.from_numpy(balanced_part(bank.labels.cpu().numpy(), classifier.validation, seed))] = True
    if held_out.all():
        raise BadInput("transfer needs two training images of a class or more: give it more labelled ones")
    return LogisticConfig(l2=choose_l2(bank.h, bank.labels, held_out, classes=classes, grid=classifier.grid))
