"""Keys renamed since the last release, whose commands and run folders can still be read."""

from __future__ import annotations

RENAMED = {
    "optim.temperature": "method.temperature",
    "machine.min_workers": "resources.min_workers",
    "machine.max_workers": "resources.max_workers",
    "machine.gpus_per_worker": "resources.gpus_per_worker",
    "machine.cpus_per_worker": "resources.cpus_per_worker",
    "machine.data_cpus": "resources.data_cpus",
    "machine.threads": "resources.threads",
    "machine.compile": "resources.compile",
    "machine.cache_gib": "resources.cache_gib",
    "machine.cache_dir": "resources.cache_dir",
    "machine.save_every_s": "saving.every_s",
    "machine.save_every_steps": "saving.every_steps",
    "machine.keep_last": "saving.keep_last",
    "machine.keep_every_epochs": "saving.keep_every_epochs",
    "machine.save_patience_s": "saving.patience_s",
    "machine.stop_after_epochs": "saving.stop_after_epochs",
    "machine.resize_every_s": "elasticity.resize_every_s",
    "machine.settle_s": "elasticity.settle_s",
    "machine.stop_margin_s": "elasticity.stop_margin_s",
    "machine.log_every_steps": "logging.every_steps",
    "machine.ledger": "logging.ledger",
}


def current_key(key: str) -> str:
    """The current name of a dotted key."""
    return RENAMED.get(key, key)
