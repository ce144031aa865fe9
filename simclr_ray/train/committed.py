"""The state after the last step that is done: what goes on if a worker is lost in the middle of the next one.

A step is done when every worker has come to its end, so survivors stand at the same step or one apart.
"""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from simclr_ray import collective
from simclr_ray.membership.generation import Generation, Progress
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.state import Snapshot, TrainState, restore, snapshot


class Committed:
    """Of one process; every worker keeps its own. With `recoverable`, it holds a copy of all tensors of the state."""

    def __init__(self, state: TrainState, *, recoverable: bool) -> None:
        self._state, self._recoverable = state, recoverable
        self._copies: list[Tensor] = []
        self._with_state: set[Tensor] = set()
        """Parameters that the optimizer had something of: some are not trained from the first step on."""
        self._step: int | None = None
        self._bad_ids: set[int] = set()
        self.pending_row: Row | None = None
        """The metrics row of the step, while its evaluation is not done."""
        self.rows: list[tuple[str, Row]] = []
        """(file, row) of what rank 0 has logged since the newest checkpoint, in case its copy dies with it."""

    @property
    def progress(self) -> Progress | None:
        return None if self._step is None else (self._step, int(self.pending_row is None))

    def commit(self, pending_row: Row | None, saved_step: int = 0) -> None:
        """The step just trained is done. `saved_step`: that of the newest complete checkpoint."""
        self._step, self._bad_ids, self.pending_row = self._state.step, set(self._state.bad_ids), pending_row
        if not self._recoverable:
            return
        self.rows = [(file, row) for file, row in self.rows if row["step"] >= saved_step]
        if collective.alone():  # nobody else can be lost
            self._copies = []
            return
        live, self._with_state = self._live(), set(self._state.optimizer.state)
        if len(self._copies) != len(live):
            self._copies = [tensor.detach().clone() for tensor in live]
        else:
            torch._foreach_copy_(self._copies, live)

    def log(self, file: str, row: Row) -> None:
        if self._recoverable:
            self.rows.append((file, row))

    @torch.no_grad()
    def put_back(self) -> None:
        """Undoes what has happened since the last commit."""
        state, step = self._state, self._step or 0
        state.step, state.bad_ids = step, set(self._bad_ids)
        self.rows = [(file, row) for file, row in self.rows if row["step"] <= step]
        if self._copies:
            for parameter in state.optimizer.state.keys() - self._with_state:
                del state.optimizer.state[parameter]
            torch._foreach_copy_(self._live(), self._copies)

    def share(self, generation: Generation) -> None:
        """Gives the state of the most advanced worker to all. It must exist."""
        source = generation.most_advanced
        assert source is not None
        if generation.in_step:
            return
        sent = _packed(self._state, self.pending_row, self.rows) if source == generation.rank else None
        received = collective.from_rank(source, sent)
        assert received is not None
        saved, self.pending_row, self.rows = _unpacked(received)
        if generation.progress[generation.rank] != generation.progress[source]:
            restore(self._state, saved)
            self._copies = []
        self.commit(self.pending_row)

    def _live(self) -> list[Tensor]:
        model, optimizer = self._state.model, self._state.optimizer
        kept = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        return [*model.parameters(), *model.buffers(), *kept]


_Packed = tuple[bytes, bytes, dict, Row | None, list[tuple[str, Row]]]


def _packed(state: TrainState, pending_row: Row | None, rows: list[tuple[str, Row]]) -> _Packed:
    copy = snapshot(state)
    return safetensors.torch.save(copy.model), safetensors.torch.save(copy.optimizer), copy.state, pending_row, rows


def _unpacked(packed: _Packed) -> tuple[Snapshot, Row | None, list[tuple[str, Row]]]:
    model, optimizer, state, pending_row, rows = packed
    return Snapshot(safetensors.torch.load(model), safetensors.torch.load(optimizer), state), pending_row, rows
