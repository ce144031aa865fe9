"""Fine-tuning on labels: a run of its own for each start, as elastic and as exactly resumed as pretraining."""

from __future__ import annotations

import hashlib
from typing import Any

from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.prepare.subset import count_classes, in_enough_slices, subset_into
from simclr_ray.evaluate.finetune import finetune_config
from simclr_ray.evaluate.labels import require_same_classes
from simclr_ray.evaluate.results import append_result, result_row
from simclr_ray.evaluate.score import Accuracy
from simclr_ray.export.encoder import encoder_file, load_pretrained
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.orchestrate.pretrain import pretrain
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import INITIAL, Row


def finetune_run(
    run: str,
    train: str,
    test: str,
    *,
    fraction: float = 1.0,
    epochs: int | None = None,
    from_head: int = 0,
    baselines: bool = False,
    seed: int = 0,
) -> Row:
    """Fine-tunes the encoder of a run folder or file on `fraction` of each class's images, and scores it on `test`.

    `train` and `test` are datasets, or anything that prepare takes. With `baselines` the same network is trained from
    untrained weights too, and from those that the run itself started from if it was given any. `from_head`: so many
    layers of the run's projection head stay before the classifier (SimCLR v2); a baseline's are drawn. `seed` chooses
    images, order, crops, and the weights that are drawn. The same call goes on where an interrupted one was.

    Appends a row as `evaluate_run` does, and returns it. Raises BadInput.
    """
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed must lie in 0..2^63 - 1, not {seed}")
    pretrained, file = load_pretrained(run), encoder_file(run)
    base, folder, storage = pretrained.config, file.parent, file.parent.parent.uri
    whole, queries = prepare_into(storage, train), prepare_into(storage, test)
    require_same_classes(whole, queries)
    part, classes = in_enough_slices(storage, subset_into(storage, whole, fraction, seed)), count_classes(whole)
    config = finetune_config(
        base, part, queries, classes=classes, fraction=fraction, epochs=epochs, from_head=from_head, seed=seed
    )
    digest = _digest(file, part, queries, config, from_head)
    results: dict[str, dict[str, float]] = {}
    for candidate, start in _starts(folder, file, base, baselines=baselines).items():
        name, started = f"{folder.name}-finetune-{candidate}-{digest}", config.with_overrides({"model.init": start})
        print(f"fine-tuning {candidate}: {config.train.epochs} epochs on {part.rows:,} images, {name}", flush=True)
        metrics = pretrain(started, name, storage).metrics
        results[candidate] = {measure: metrics[measure] for measure in Accuracy._fields if measure in metrics}
    row = result_row("finetune", _settings(config, from_head), train, test, fraction, file, pretrained.sha256)
    row |= {"train_rows": part.rows, "test_rows": queries.rows, "bad": 0, "results": results}
    append_result(folder, row)
    return row


def _settings(config: Config, from_head: int) -> dict[str, Any]:
    """For the row."""
    train = config.train
    found = {"lr_per_256": config.optim.lr_per_256, "batch": train.global_batch, "epochs": train.epochs}
    return found | ({"from_head": from_head} if from_head else {}) | {"seed": train.seed}


def _starts(folder: Location, file: Location, config: Config, *, baselines: bool) -> dict[str, str | None]:
    """The weights that each candidate starts from, as model.init takes them."""
    starts: dict[str, str | None] = {"pretrained": file.uri}
    if baselines:
        starts["untrained"] = None
        if config.model.init_sha256 and (folder / INITIAL).exists():
            starts["initial"] = (folder / INITIAL).uri
    return starts


def _digest(file: Location, train: Dataset, test: Dataset, config: Config, from_head: int) -> str:
    """Names what is fine-tuned on what and how, so that equal commands meet the same run and others do not."""
    settings: tuple[Any, ...] = (file.read_bytes(), train.fingerprint, test.fingerprint, config.train, config.optim)
    # What fine-tuning does not use is left out, so that runs from before there was this setting are found again.
    if from_head:
        settings += (from_head,)
    text = repr(settings).replace("bias_lr_fraction=1.0, ", "")
    return hashlib.sha256(text.encode()).hexdigest()[:8]
