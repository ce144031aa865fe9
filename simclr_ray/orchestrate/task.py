"""The description of a run that its training processes get, and the request to end a run."""

from __future__ import annotations

from dataclasses import dataclass

from ray.experimental import internal_kv

from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.membership.member import Address
from simclr_ray.planning.shares import Share
from simclr_ray.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run and its share of the cluster; values and addresses only, so it pickles."""

    config: Config
    dataset: Dataset
    bank: Dataset | None
    test: Dataset | None
    """`bank` and `test` of the check during training: no bank, no check; no test: rows held out of the bank's."""
    run: Location
    driver: str
    share: Share
    address: Address | None = None
    """Of the coordinator of a group whose workers survive each other; None: the group ends with any of them."""

    @property
    def progress_key(self) -> str:
        return f"simclr_ray/progress/{self.driver}"

    @property
    def end_key(self) -> str:
        return end_key(self.run)


def member_name(node: str, name: str) -> str:
    """Of a worker among those of its group: its node's id, and what tells it from others there."""
    return f"{node}/{name}"


def node_of(member: str) -> str:
    return member.split("/")[0]


def end_key(run: Location) -> str:
    return f"simclr_ray/end/{run.uri}"


def request_end(run: Location) -> None:
    """Requests that a run training on this cluster saves and ends, within seconds; the same command resumes it."""
    internal_kv._internal_kv_put(end_key(run), "", overwrite=True)
