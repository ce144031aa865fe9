"""A run as its training processes receive it, and the request to end one."""

from __future__ import annotations

from dataclasses import dataclass

from ray.experimental import internal_kv

from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.planning.shares import Share
from simclr_ray.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Task:
    """Values and addresses; it pickles."""

    config: Config
    dataset: Dataset
    bank: Dataset | None
    test: Dataset | None
    """Of the check during training: no bank, no check; no test set: rows held out of the bank's."""
    run: Location
    driver: str
    share: Share

    @property
    def progress_key(self) -> str:
        return f"simclr_ray/progress/{self.driver}"

    @property
    def end_key(self) -> str:
        return end_key(self.run)


def end_key(run: Location) -> str:
    return f"simclr_ray/end/{run.uri}"


def ask_to_end(run: Location) -> None:
    """Has a run that trains on this cluster save and end, within seconds; the same command goes on."""
    internal_kv._internal_kv_put(end_key(run), "", overwrite=True)
