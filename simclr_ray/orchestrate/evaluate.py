"""Evaluation of a finished run: its data are prepared on the cluster, its encoder is scored in this process."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from simclr_ray.config import Config, EvaluateConfig
from simclr_ray.data.prepare.subset import subset_into
from simclr_ray.evaluate.compare import (
    Candidate,
    baselines_of,
    by_knn,
    by_linear,
    by_transfer,
    compare,
    require_settings,
)
from simclr_ray.evaluate.labels import require_same_classes
from simclr_ray.evaluate.results import OURS, append_result, result_row
from simclr_ray.export.encoder import Pretrained, encoder_file, load_pretrained
from simclr_ray.model.initial import read_initial
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import INITIAL, Row


def evaluate_run(
    run: str,
    method: Literal["knn", "linear", "transfer"],
    train: str,
    test: str,
    *,
    fraction: float = 1.0,
    baselines: bool = False,
    crops: int = 0,
    neighbours: int = EvaluateConfig.neighbours,
    temperature: float = EvaluateConfig.temperature,
    seed: int = 0,
) -> Row:
    """Scores the encoder of a run folder or file, on a GPU if there is one, and appends the row to evaluation.jsonl.

    `train` (the bank) and `test` (the queries) are datasets, or anything that prepare takes: it is then prepared once
    beside the run folder. `fraction` of each class's images make the bank; `crops`: see `by_linear`. With `baselines`
    the encoder stands beside its own untrained weights, those that the run started from if any, and the pixels.

    The row: `result_row`'s, and what `compare` returns, `pretrained` first. Raises BadInput for a run without an
    encoder, and for data without labels or with other classes.
    """
    require_settings(neighbours, temperature, crops, seed)
    pretrained, file = load_pretrained(run), encoder_file(run)
    folder, storage, size = file.parent, file.parent.parent.uri, pretrained.size
    whole, queries = prepare_into(storage, train), prepare_into(storage, test)
    require_same_classes(whole, queries)
    bank = subset_into(storage, whole, fraction, seed)
    scoring = {
        "knn": by_knn(size, neighbours, temperature),
        "linear": by_linear(size, bank.rows, crops, seed),
        "transfer": by_transfer(size, seed),
    }[method]
    candidates = [judged_encoder(pretrained)]
    if baselines:
        candidates += baselines_of(pretrained.config, size, initial_weights(folder, pretrained.config))
    row = result_row(method, scoring.settings, train, test, fraction, file, pretrained.sha256)
    row |= compare(candidates, scoring, bank, queries)
    append_result(folder, row)
    return row


def judged_encoder(pretrained: Pretrained) -> Candidate:
    encoder, size, mean, std = pretrained.encoder, pretrained.size, pretrained.mean, pretrained.std
    return Candidate(name=OURS, encoder=encoder, size=size, mean=mean, std=std)


def initial_weights(folder: Location, config: Config) -> dict[str, Tensor] | None:
    """The weights that the run started from, if any. A file that was copied out of its run folder left them there."""
    return read_initial(folder, config.model.init_sha256 if (folder / INITIAL).exists() else None)
