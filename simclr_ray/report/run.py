"""A run folder as a report reads it: its records, whether it is being trained, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from simclr_ray.config import BadInput
from simclr_ray.report.attempts import attempts_of
from simclr_ray.storage.lease import is_held
from simclr_ray.storage.location import open_location, unreachable
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row, read_rows

SHOWN = (
    ("top1", "classifier", " % top-1"),
    ("knn_top1", "kNN", " % top-1"),
    ("linear_top1", "linear", " % top-1"),
    ("rankme", "rankme", ""),
    ("probe_top1", "probe", " % top-1"),
)
"""What a check or the probe has found: its key, and what the summary calls it."""


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """Rows of events.jsonl (one at least) and metrics.jsonl."""

    address: str
    events: list[Row]
    rows: list[Row]
    running: bool

    @property
    def state(self) -> str:
        """Finished, running or interrupted."""
        if self.events[-1]["event"] == "done":
            return "finished"
        return "running" if self.running else "interrupted"


def read_run(run: str, now: float) -> RunRecords:
    """The records of a run folder, local or by URI, at the unix time `now`. Raises BadInput if there are none."""
    folder = open_location(run)
    try:
        if not folder.is_folder():
            raise BadInput(f"there is no run {run}: give the folder STORAGE/NAME that pretrain.py wrote")
        # The metrics first: of a row that comes in between, the event that began its attempt is there too.
        rows = read_rows(folder / METRICS)
        events = read_rows(folder / EVENTS)
        if not events:
            raise BadInput(f"{run} has no events: it is no run folder, or its first workers are not up yet")
        return RunRecords(address=folder.uri, events=events, rows=rows, running=is_held(folder, now))
    except OSError as error:
        raise unreachable("read", run, error) from None


def summary(run: RunRecords) -> str:
    """How far the run is, for a terminal."""
    last = attempts_of(run.events, run.rows)[-1]
    lines = [
        f"{run.address}: {run.state}",
        f"step       {last.last_step:,}",
        f"workers    {last.workers}",
    ]
    if run.rows:
        row = run.rows[-1]
        lines += [
            f"epoch      {row['epoch']:.2f}",
            f"loss       {row['loss']:.4f} at step {row['step']:,}",
            f"images/s   {row['images_per_s']:,.1f}",
        ]
    for key, label, unit in SHOWN:
        found = [row for row in run.rows if key in row]
        if found:
            lines.append(f"{label:<10} {found[-1][key]:.2f}{unit} at step {found[-1]['step']:,}")
    saves = [event for event in run.events if event["event"] == "save"]
    if saves:
        when = datetime.fromtimestamp(saves[-1]["time"], UTC)
        lines.append(f"last save  step {saves[-1]['step']:,} at {when:%Y-%m-%d %H:%M:%S} UTC")
    return "\n".join(lines)
