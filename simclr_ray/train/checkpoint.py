"""Checkpoints: a folder per step, its manifest written last, each file's sha256 verified on load.

Without a valid manifest a checkpoint does not exist: after an interrupted save an older one is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

import safetensors.torch
from safetensors import SafetensorError

from simclr_ray.config import BadInput
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import CHECKPOINT, MANIFEST, checkpoint_name
from simclr_ray.train.state import Snapshot

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


class Damaged(Exception):
    """A checkpoint fails verification and must not be used; the message says why."""


class SavesFailed(RuntimeError):
    """No save has succeeded for longer than saving.patience_s."""


def steps_in(run: Location) -> list[int]:
    """Steps of all checkpoint folders of a run, valid or not, ascending."""
    matches = [CHECKPOINT.fullmatch(name) for name in run.folders()]
    return sorted(int(match.group(1)) for match in matches if match)


def complete_steps(run: Location) -> list[int]:
    """Steps of the checkpoints whose manifest was written, ascending; incomplete ones are left out."""
    return [step for step in steps_in(run) if (run / checkpoint_name(step) / MANIFEST).exists()]


def write(run: Location, saved: Snapshot) -> None:
    """Writes `step-…/`, the manifest last. Whatever an earlier attempt left there is deleted first."""
    folder = run / checkpoint_name(saved.step)
    folder.delete()
    contents = (
        safetensors.torch.save(saved.model),
        safetensors.torch.save(saved.optimizer),
        (json.dumps(saved.state) + "\n").encode(),
    )
    manifest = {}
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_bytes(content)
        manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_bytes((json.dumps({"files": manifest}, indent=1) + "\n").encode())


def read(run: Location, step: int) -> Snapshot:
    """The checkpoint of `step`, every file verified. Raises Damaged."""
    folder = run / checkpoint_name(step)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())["files"]
        contents = {name: (folder / name).read_bytes() for name in FILES}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest[name]["sha256"]:
                raise Damaged(f"{folder.name}: the sha256 of {name} does not match the manifest")
        model = safetensors.torch.load(contents["model.safetensors"])
        optimizer = safetensors.torch.load(contents["optimizer.safetensors"])
        return Snapshot(model, optimizer, json.loads(contents["state.json"]))
    except FileNotFoundError as error:
        raise Damaged(f"{folder.name}: {error.filename or 'a file'} is missing") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Damaged(f"{folder.name}: unreadable ({error})") from None


def newest_valid(run: Location) -> tuple[Snapshot | None, list[str]]:
    """The newest checkpoint that passes verification, and why each newer one was skipped."""
    skipped: list[str] = []
    for step in reversed(steps_in(run)):
        try:
            return read(run, step), skipped
        except Damaged as reason:
            skipped.append(str(reason))
    return None, skipped


def prune(run: Location, newest: int, keep_last: int, steps_between_kept: int | None) -> None:
    """Keeps the `keep_last` checkpoints up to `newest`, just written, and the first of every `steps_between_kept`.

    Incomplete checkpoints are deleted, and so are newer ones: they were skipped as damaged when the run was restored.
    """
    steps = [step for step in complete_steps(run) if step <= newest]
    kept = set(steps[-keep_last:])
    if steps_between_kept:
        firsts = {step // steps_between_kept: step for step in reversed(steps)}
        kept |= set(firsts.values())
    for step in steps_in(run):
        if step not in kept:
            (run / checkpoint_name(step)).delete()


@dataclass(frozen=True)
class SaveResult:
    """The outcome of one attempt to save: its duration, and the error if it failed."""

    step: int
    seconds: float
    error: str | None = None


class Saver:
    """Writes snapshots on a background thread, one at a time; only rank 0 has one.

    A failing store only delays saves, until none has succeeded for `patience_s`: then `save` raises SavesFailed. A step
    whose checkpoint is complete is not written again, because writing begins with deleting it.
    """

    def __init__(
        self,
        run: Location,
        *,
        keep_last: int,
        steps_between_kept: int | None,
        still_ours: Callable[[], bool],
        patience_s: float = 3600.0,
    ) -> None:
        self._run, self._keep_last, self._steps_between_kept = run, keep_last, steps_between_kept
        self._still_ours, self._patience_s = still_ours, patience_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._pending: Future[SaveResult] | None = None
        self._failing_since: float | None = None
        self.complete_step: int | None = None
        """Step of the newest complete checkpoint: the last that this attempt wrote, or was restored from."""

    @property
    def busy(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def save(self, saved: Snapshot, *, wait: bool) -> list[SaveResult]:
        """Starts a save once the one under way has ended; with `wait` it is done on return. Returns ended saves."""
        ended = self.collect(wait=True)
        if saved.step == self.complete_step:
            return ended
        self._pending = self._thread.submit(self._write, saved)
        return ended + self.collect(wait=wait)

    def collect(self, *, wait: bool) -> list[SaveResult]:
        """The save that has ended since the last call, if any. Raises BadInput if another driver has taken over."""
        if self._pending is None or not (wait or self._pending.done()):
            return []
        result = self._pending.result()
        self._pending = None
        if result.error is None:
            self._failing_since, self.complete_step = None, result.step
            return [result]
        if self._failing_since is None:
            self._failing_since = monotonic() - result.seconds
        if monotonic() - self._failing_since > self._patience_s:
            raise SavesFailed(f"no checkpoint could be written to {self._run}: {result.error}")
        return [result]

    def _write(self, saved: Snapshot) -> SaveResult:
        start = monotonic()
        try:
            if not self._still_ours():
                raise BadInput(f"another driver has taken over {self._run}: this one stops without saving")
            write(self._run, saved)
        except OSError as error:
            with contextlib.suppress(OSError):  # a part would take the room that the next save needs
                if self._still_ours():
                    (self._run / checkpoint_name(saved.step)).delete()
            return SaveResult(saved.step, monotonic() - start, f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # the checkpoint is complete; the next save prunes again
            if self._still_ours():  # or newer checkpoints may be those of who went on while this process was frozen
                prune(self._run, saved.step, self._keep_last, self._steps_between_kept)
        return SaveResult(saved.step, monotonic() - start)
