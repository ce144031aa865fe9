"""Fine-tuning on labels: a run of its own for each start, as elastic and as exactly resumed as pretraining."""

from __future__ import annotations

import hashlib

from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.prepare.subset import count_classes, subset_into
from simclr_ray.evaluate.finetune import finetune_config
from simclr_ray.evaluate.labels import require_same_classes
from simclr_ray.evaluate.results import append_result, result_row
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
    baselines: bool = False,
    seed: int = 0,
) -> Row:
    """Fine-tunes the encoder of a run folder or file on `fraction` of each class's images, and scores it on `test`.

    `train` and `test` are datasets, or anything that prepare takes. With `baselines` the same network is trained from
    untrained weights too, and from those that the run itself started from if it was given any. `seed` chooses the
    images, their order and crops, and the classifier's weights. The same call goes on where an interrupted one was.

    Appends a row as `evaluate_run` does, and returns it. Raises BadInput.
    """
    pretrained, file = load_pretrained(run), encoder_file(run)
    folder, storage = file.parent, file.parent.parent.uri
    whole, queries = prepare_into(storage, train), prepare_into(storage, test)
    require_same_classes(whole, queries)
    part, classes = subset_into(storage, whole, fraction, seed), count_classes(whole)
    starts = _starts(folder, file, pretrained.config, baselines=baselines)
    results, config = {}, pretrained.config
    for candidate, start in starts.items():
        config = finetune_config(
            pretrained.config, start, part, queries, classes=classes, fraction=fraction, epochs=epochs, seed=seed
        )
        name = f"{folder.name}-finetune-{candidate}-{_digest(file, part, queries, config)}"
        print(f"fine-tuning {candidate}: {config.train.epochs} epochs on {part.rows:,} images, {name}", flush=True)
        metrics = pretrain(config, name, storage).metrics
        results[candidate] = {"top1": metrics["top1"], "top5": metrics["top5"]}
    optim = {"lr_per_256": config.optim.lr_per_256, "batch": config.train.global_batch, "epochs": config.train.epochs}
    row = result_row("finetune", optim | {"seed": seed}, train, test, fraction)
    row |= {"train_rows": part.rows, "test_rows": queries.rows, "bad": 0, "results": results}
    append_result(folder, row)
    return row


def _starts(folder: Location, file: Location, config: Config, *, baselines: bool) -> dict[str, str | None]:
    """The weights that each candidate starts from, as model.init takes them."""
    starts: dict[str, str | None] = {"pretrained": file.uri}
    if baselines:
        starts["untrained"] = None
        if config.model.init_sha256 and (folder / INITIAL).exists():
            starts["initial"] = (folder / INITIAL).uri
    return starts


def _digest(file: Location, train: Dataset, test: Dataset, config: Config) -> str:
    """Names what is fine-tuned on what and how, so that equal commands meet the same run and others do not."""
    settings = (file.read_bytes(), train.fingerprint, test.fingerprint, config.train, config.optim)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
