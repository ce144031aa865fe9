"""The model card of an exported encoder: what it is, how it was trained, what it reaches, how it is loaded."""

from __future__ import annotations

import json
import re
from typing import Any

from simclr_ray.config import CLASSIFYING, BadInput, Config
from simclr_ray.data.dataset import open_dataset
from simclr_ray.export.encoder import Pretrained
from simclr_ray.export.formats import Format, transform_of
from simclr_ray.optim.schedule import peak_lr
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import BEST, EVALUATIONS, METRICS, Row, read_rows
from simclr_ray.train.check import is_own_check, objective_of

CARD, PREPROCESSING = "README.md", "preprocessing.json"
LIBRARY_NAMES: dict[Format, str] = {"timm": "timm", "onnx": "onnx", "safetensors": "simclr_ray"}
"""As the Hugging Face hub calls them."""

FOLDERS = re.compile(
    r"""(?<=['"])/(?!/)[^'"\n]*/(?=[^'"/\n])|(?<![^\s'"=:])(?:file://|~[^\s'"/]*)?/(?!/)(?:[^\s'"]*/)?(?=[^\s'"/])"""
)
"""Those of an absolute local path, up to its last name. What follows another scheme's two slashes is none."""

TEMPLATE = """\
---
license: unknown
tags:
- image-feature-extraction
{kind}- {method}{library}
---

# {network}, pretrained by {method}

An encoder without a classifier: {size} x {size} images in, features of {dim} numbers out. Trained by simclr_ray.

## Use

```python
{lines}
```

Images are resized, cropped and normalised as `preprocessing.json` says.

## Training

{training}

All settings are in the run's `config.json`. The program that wrote this card does not know the licence of the training
images: set `license` above to what they allow.

## Evaluation

{evaluation}

Written by `{command}`.
"""


def write_card(form: Format, pretrained: Pretrained, file: Location, out: Location, lines: str, command: str) -> None:
    """README.md, in the Hugging Face hub's form, and preprocessing.json. `lines` load the encoder, which is in `file`.

    A card is published: of local paths it has the last name alone, and not the folders of whoever wrote it.
    """
    transform, run = transform_of(pretrained).to_dict(), file.parent
    (out / PREPROCESSING).write_bytes((json.dumps(transform, indent=1) + "\n").encode())
    evaluations = [r for r in read_rows(run / EVALUATIONS) if r.get("encoder_sha256") in (None, pretrained.sha256)]
    row = _row_of(file.name, pretrained.config, read_rows(run / METRICS))
    text = _card(form, pretrained, row, evaluations, lines, command)
    (out / CARD).write_bytes(FOLDERS.sub("", text).encode())


def _card(
    form: Format, pretrained: Pretrained, row: Row | None, evaluations: list[Row], lines: str, command: str
) -> str:
    config, model = pretrained.config, pretrained.config.model
    library = f"\nlibrary_name: {LIBRARY_NAMES[form]}" if form in LIBRARY_NAMES else ""
    return TEMPLATE.format(
        method=config.method.name,
        kind="" if isinstance(config.method, CLASSIFYING) else "- self-supervised\n",
        library=library,
        network=f"{model.arch} of width {model.width:g}" if model.width != 1 else model.arch,
        size=pretrained.size,
        dim=pretrained.encoder.feature_dim,
        lines=lines,
        training="\n".join(_table(_training(config, row))),
        evaluation="\n".join(_accuracies(evaluations)),
        command=command,
    )


def _row_of(name: str, config: Config, metrics: list[Row]) -> Row | None:
    """Of the step whose encoder the file has: the last one, or that of the best check."""
    objective = objective_of(config)
    own = (row for row in metrics if objective in row and is_own_check(config, row["epoch"]))
    checks = list(own) if name == BEST else []
    return max(checks, key=lambda row: row[objective]) if checks else next(reversed(metrics), None)


def _training(config: Config, row: Row | None) -> dict[str, Any]:
    optim = config.optim
    peak = peak_lr(optim.lr_per_256, optim.lr_scaling, config.train.global_batch)
    epochs = f"{row['epoch']:g} of {config.train.epochs}" if row and row["epoch"] != config.train.epochs else None
    return {
        "method": config.method.name,
        "images": _images(config.data.train),
        "epochs": epochs or config.train.epochs,
        "global batch": config.train.global_batch,
        "steps": row["step"] if row else "not recorded beside the encoder",
        "optimizer": f"{optim.optimizer}, learning rate at its peak {peak:g}",
        "weights at the start": f"{config.model.init} ({config.model.init_sha256})" if config.model.init else "random",
        "precision": config.train.precision,
        "seed": config.train.seed,
    }


def _images(train: str) -> str:
    try:
        dataset = open_dataset(train)
    except BadInput:  # on another machine, or deleted
        return train
    return f"{dataset.rows:,} of {dataset.source['spec']}, fingerprint {dataset.fingerprint}"


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _accuracies(evaluations: list[Row]) -> list[str]:
    """The newest row of each method, share of the labels and test set."""
    newest = {(row["method"], row.get("fraction", 1.0), row["test"]): row for row in evaluations}
    if not newest:
        return ["Not evaluated: `evaluate.py RUN knn --train TRAIN --test TEST` measures it."]
    lines = ["| method | labels | encoder | top-1 % | top-5 % | tested on |", "|---|---|---|---|---|---|"]
    for (method, fraction, _), row in newest.items():
        for name, found in row["results"].items():
            lines.append(
                f"| {method} | {100 * fraction:g} % | {name} | {found['top1']:.2f} | {found['top5']:.2f} "
                f"| {row['test']} ({row['test_rows']:,} images) |"
            )
    return lines
