"""Every run of a storage folder in a line of its own: state, progress, last save, goodput. A sweep is one line.

A folder that cannot be read is listed with its problem and hides no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import open_dataset
from simclr_ray.data.order import order_of
from simclr_ray.report.attempts import attempts_of
from simclr_ray.report.columns import in_columns
from simclr_ray.report.goodput import account
from simclr_ray.report.run import RunRecords, read_run
from simclr_ray.storage.lease import is_held
from simclr_ray.storage.location import Location, open_location, unreachable
from simclr_ray.storage.run_folder import CONFIG, EVENTS, TRIAL, is_sweep, read_config

DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""Raised by reading a folder whose files are not those of a run; BadInput is a ValueError."""
THREADS = 16
"""Folders read at a time: an object store answers each request after tens of milliseconds."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of one run, or of the trials of one sweep; None for what is unknown."""

    name: str
    state: str
    """finished, running, stopped (on purpose, before its last step), interrupted, failed or damaged; or sweep."""
    step: int | None = None
    steps: int | None = None
    """All that the run will have."""
    epoch: float | None = None
    saved_s_ago: float | None = None
    goodput: float | None = None
    """Training's part of the wall time."""
    loss: float | None = None
    knn_top1: float | None = None
    """Percent; of a sweep, that of the best trial."""
    workers: int | None = None
    trials: dict[str, int] | None = None
    """Of a sweep: how many by state."""
    problem: str | None = None


def list_runs(storage: str, now: float) -> list[RunStatus]:
    """The runs below `storage`, local or by URI, by name, at the unix time `now`. Raises BadInput if it is not there.

    Folders that hold neither a run nor a sweep, such as prepared data, are left out.
    """
    try:
        home = open_location(storage)
        if not home.is_folder():
            raise BadInput(f"there is no storage {storage}: give what pretrain.py was given as --storage")
        names = home.folders()
    except OSError as error:
        raise unreachable("list", storage, error) from None
    return _read(home, names, now)


def _read(home: Location, names: Sequence[str], now: float) -> list[RunStatus]:
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _status(home / name, now), names)
        return [status for status in found if status is not None]


def _status(folder: Location, now: float) -> RunStatus | None:
    try:
        if is_sweep(folder):
            return _sweep(folder, now)
        if (folder / EVENTS).exists():
            return _run(folder, now)
        return _without_events(folder, now) if (folder / CONFIG).exists() else None
    except DAMAGE as error:
        problem = str(error).splitlines()[0] if isinstance(error, BadInput) else f"unreadable ({error!r})"
        return RunStatus(name=folder.name, state="damaged", problem=problem)


def _run(folder: Location, now: float) -> RunStatus:
    if not (folder / EVENTS).size():
        return _without_events(folder, now)
    run = read_run(folder.uri, now)
    found = account(run.events, run.rows, now=now if run.state == "running" else None)
    row = run.rows[-1] if run.rows else {}
    saves = [event["time"] for event in run.events if event["event"] == "save"]
    steps, problem = _all_steps(folder)
    return RunStatus(
        name=folder.name,
        state=_state(run),
        step=found.step,
        steps=steps,
        epoch=row.get("epoch"),
        saved_s_ago=max(0.0, now - saves[-1]) if saves else None,
        goodput=found.fraction,
        loss=row.get("loss"),
        knn_top1=next((row["knn_top1"] for row in reversed(run.rows) if "knn_top1" in row), None),
        workers=attempts_of(run.events, run.rows)[-1].workers,
        problem=problem,
    )


def _state(run: RunRecords) -> str:
    """Failed: it was given up, or its last attempts died of something and no step was done since."""
    last = run.events[-1]
    if run.state != "interrupted":
        return run.state
    if last["event"] == "gave_up":
        return "failed"
    if last["event"] == "stop" and last["reason"] != "preemption":
        return "stopped"
    signs = [e for e in run.events if e["event"] in ("first_step", "save") or (e["event"] == "failure" and e["cause"])]
    return "failed" if signs and signs[-1]["event"] == "failure" else "interrupted"


def _all_steps(folder: Location) -> tuple[int | None, str | None]:
    """The steps of the whole run, or why they are unknown, which is no damage: the data may be out of reach here."""
    config = read_config(folder)
    if config is None:
        raise BadInput(f"{folder} has no {CONFIG}")
    try:
        order = order_of(config, open_dataset(config.data.train))
    except BadInput as error:
        return None, str(error)
    return config.train.epochs * order.steps_per_epoch, None


def _without_events(folder: Location, now: float) -> RunStatus:
    """Its first workers are not up yet, never were, or have not saved yet to an object store."""
    state = "running" if is_held(folder, now) else "interrupted"
    return RunStatus(name=folder.name, state=state, problem="no events yet")


def _sweep(folder: Location, now: float) -> RunStatus:
    trials = _read(folder, [name for name in folder.folders() if TRIAL.fullmatch(name)], now)
    return RunStatus(
        name=folder.name,
        state="sweep",
        knn_top1=max((trial.knn_top1 for trial in trials if trial.knn_top1 is not None), default=None),
        trials=dict(Counter(trial.state for trial in trials)),
    )


COLUMNS = ("run", "state", "step", "epoch", "saved", "goodput", "loss", "kNN", "workers")


def table(statuses: Sequence[RunStatus]) -> str:
    """A line for each run, for a terminal; problems below."""
    lines = [COLUMNS, *(_cells(status) for status in statuses)]
    problems = [f"{status.name}: {status.problem}" for status in statuses if status.problem]
    return "\n".join([*in_columns(lines), *(["", *problems] if problems else [])])


def _cells(status: RunStatus) -> tuple[str, ...]:
    state = status.state
    if status.trials is not None:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(status.trials.items()))
        state = f"sweep of {sum(status.trials.values())}: {counts}" if counts else "sweep without trials"
    return (
        status.name,
        state,
        _shown(status.step, "{:,}") + _shown(status.steps, " of {:,}"),
        _shown(status.epoch, "{:.2f}"),
        "" if status.saved_s_ago is None else f"{_span(status.saved_s_ago)} ago",
        _shown(status.goodput, "{:.1%}"),
        _shown(status.loss, "{:.4f}"),
        _shown(status.knn_top1, "{:.2f} %"),
        _shown(status.workers, "{}"),
    )


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
