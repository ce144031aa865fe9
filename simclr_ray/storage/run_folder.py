"""The files of a run folder and of a sweep folder: their names, and how config and rows are read."""

from __future__ import annotations

import json
import re
from typing import Any

from simclr_ray.config import Config
from simclr_ray.storage.location import Location

# A run folder, STORAGE/NAME.

CONFIG = "config.json"
"""The config, with what the first start resolved."""
METRICS = "metrics.jsonl"
"""A row for each log interval and each evaluation; rewound when the run is restored."""
EVENTS = "events.jsonl"
"""Starts, saves, notices, failures, the end; never rewound."""
INITIAL = "initial.safetensors"
"""The weights that the encoder starts from, where model.init names some."""
TEACHER = "teacher.safetensors"
"""The classifier that method.teacher names: weights, and the config of its run."""
LEDGER = "ledger.jsonl"
"""The sample ids of every step, where logging.ledger is set."""
EVALUATIONS = "evaluation.jsonl"
"""A row for each evaluation of the encoder by the command `evaluate`."""
DRIVER = "driver.json"
"""The lease of the driver that trains the run (see lease.py)."""
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's event files."""
ENCODER = "encoder.safetensors"
"""The trained encoder, written at the end."""
BEST = "best.safetensors"
"""The encoder of the best check, where evaluate.keep_best is set."""
CHECKPOINT = re.compile(r"step-(\d{8,})")
"""The folder of a checkpoint; its step is group 1."""
MANIFEST = "manifest.json"
"""In a checkpoint's folder, written last: size and sha256 of the other files."""

# A sweep folder. Its trials are run folders inside it.

SWEEP = "sweep.json"
"""The settings of the sweep."""
STUDY = "study.journal"
"""Optuna's journal: trials, parameters, objectives."""
TRIAL = re.compile(r"trial-\d+")
"""The run folder of a trial."""
REPORT = "report"
"""Folder of the plots and the page that `report` writes."""
FEATURE_MAP, NEAREST = "features.png", "nearest.png"
"""Plots there that `report --against` alone makes, as they need the encoder."""

Row = dict[str, Any]
"""One JSON object of a .jsonl file."""


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint of `step`, as CHECKPOINT matches it."""
    return f"step-{step:08d}"


def trial_name(number: int) -> str:
    """The run folder of a trial, as TRIAL matches it."""
    return f"trial-{number:04d}"


def is_sweep(folder: Location) -> bool:
    return (folder / SWEEP).exists()


def config_text(run: Location) -> str | None:
    """The content of config.json; None where there is none."""
    file = run / CONFIG
    return file.read_bytes().decode() if file.exists() else None


def read_config(run: Location) -> Config | None:
    """The config that a run was started with; None where there is none. Raises ValueError for a damaged file."""
    text = config_text(run)
    return None if text is None else Config.from_json(text)


def read_rows(file: Location) -> list[Row]:
    """The rows of a .jsonl file; a last line that was cut short is left out, a missing file has none."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_bytes().decode().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
