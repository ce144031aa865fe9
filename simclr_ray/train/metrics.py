"""What a run says about itself: metrics.jsonl, events.jsonl, TensorBoard, and the signals of a collapse."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from time import monotonic, time
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr_ray.data.rows import Row, read_rows
from simclr_ray.data.storage import Location


class JsonLines:
    """A file of JSON rows: appended to on a disk, written whole by `flush` on an object store."""

    def __init__(self, file: Location, keep: list[Row]) -> None:
        self._file = file
        self._lines = [json.dumps(row) for row in keep]
        self._changed = True
        self.flush()
        self._stream = open(file.local, "a") if file.local else None  # noqa: SIM115 (closed by close)

    def append(self, row: Row) -> None:
        line = json.dumps(row)
        if self._stream:
            self._stream.write(line + "\n")
            self._stream.flush()
        else:
            self._lines.append(line)
            self._changed = True

    def flush(self) -> None:
        if self._changed:
            self._file.write_bytes("".join(line + "\n" for line in self._lines).encode())
            self._changed = False

    def close(self) -> None:
        self.flush()
        if self._stream:
            self._stream.close()


class RunLog:
    """The records of a run folder, written by rank 0 alone. Metrics are rewound to the restored step, events never."""

    def __init__(self, run: Location, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import: rank 0 alone pays it

        kept = [row for row in read_rows(run / "metrics.jsonl") if row["step"] <= step]
        self._metrics = JsonLines(run / "metrics.jsonl", kept)
        self._events = JsonLines(run / "events.jsonl", read_rows(run / "events.jsonl"))
        self._run = run
        # TensorBoard writes to a disk alone: for an object store to a scratch folder, copied at each flush.
        self._scratch = None if run.local else tempfile.TemporaryDirectory(prefix="simclr_ray-board-")
        self._board_folder = Path(self._scratch.name) if self._scratch else Path(run.path) / "tensorboard"
        self._board = SummaryWriter(str(self._board_folder), purge_step=step + 1 if step else None)
        self.last_step = kept[-1]["step"] if kept else 0

    def metrics(self, row: Row) -> None:
        self._metrics.append(row)
        for key, value in row.items():
            if isinstance(value, (int, float)) and key not in ("step", "time"):
                self._board.add_scalar(key, value, row["step"])

    def event(self, kind: str, step: int, **fields: Any) -> None:
        self._events.append({"event": kind, "time": round(time(), 3), "step": step, **fields})

    def flush(self) -> None:
        """Brings an object store up to date; on a disk everything already is."""
        self._metrics.flush()
        self._events.flush()
        self._board.flush()
        if self._scratch:
            for file in self._board_folder.iterdir():
                (self._run / "tensorboard" / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
        self._board.close()
        self.flush()


class Meter:
    """Images per second and the part of the time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self._start, self._waited, self._images = monotonic(), 0.0, 0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def trained(self, images: int) -> None:
        self._images += images

    def read(self) -> Row:
        elapsed = max(monotonic() - self._start, 1e-9)
        row = {
            "images_per_s": round(self._images / elapsed, 1),
            "data_wait_fraction": round(self._waited / elapsed, 4),
        }
        self._start, self._waited, self._images = monotonic(), 0.0, 0
        return row


@torch.no_grad()
def collapse_signals(view_a: Float[Tensor, "n d"], view_b: Float[Tensor, "n d"]) -> dict[str, float]:
    """What shows a collapse before the accuracy does, over the projections of a global batch.

    `feature_std`: sqrt(d) x the mean standard deviation of the normalised coordinates, 1 when they spread over the
    sphere, 0 when they collapse. `alignment` and `uniformity` (Wang and Isola 2020): mean squared distance of the two
    views; log of the mean Gaussian potential (t = 2) over pairs of pictures.
    """
    a, b = F.normalize(view_a.double(), dim=1), F.normalize(view_b.double(), dim=1)
    n, d = a.shape
    pairs = sum(float((-2 * torch.cdist(a[i : i + 1024], a).square()).exp().sum()) for i in range(0, n, 1024))
    return {
        "feature_std": float(a.std(dim=0, correction=0).mean() * d**0.5),
        "alignment": float((a - b).square().sum(dim=1).mean()),
        "uniformity": math.log((pairs - n) / (n * (n - 1))),
    }
