"""wandb and mlflow as far as they are used here: they keep runs in memory, and fail or hang when told to."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

Point = tuple[int, str, float]
"""Step, key and value."""


class Service:
    """One tracker's server. `on_request` is called at each request, and may raise or wait."""

    def __init__(self) -> None:
        self.on_request: Callable[[], None] = lambda: None
        self.points: dict[str, list[Point]] = {}
        """By the id of the run."""
        self.configs: dict[str, list[dict[str, Any]]] = {}
        """What was logged as a run's config, each time."""
        self.names: dict[str, str] = {}
        self.closed = 0

    def open(self, run: str, name: str) -> None:
        self.on_request()
        self.points.setdefault(run, [])
        self.configs.setdefault(run, [])
        self.names[run] = name

    def rows(self) -> dict[int, dict[str, float]]:
        """The values of the only run by step. No value may be there twice."""
        (points,) = self.points.values()
        rows: dict[int, dict[str, float]] = {}
        for step, key, value in points:
            assert key not in rows.setdefault(step, {}), f"{key} of step {step} is there twice"
            rows[step][key] = value
        return rows


class _WandbConfig:
    def __init__(self, service: Service, run: str) -> None:
        self._service, self._run = service, run

    def keys(self) -> list[str]:
        return [key for config in self._service.configs[self._run] for key in config]

    def update(self, config: dict[str, Any]) -> None:
        self._service.configs[self._run].append(config)


class _WandbRun:
    """As wandb's: it goes on after the last step that it has, and ignores earlier ones."""

    def __init__(self, service: Service, run: str, name: str) -> None:
        service.open(run, name)
        self._service, self._run, self.config = service, run, _WandbConfig(service, run)
        self.starting_step = 1 + max((step for step, _, _ in service.points[run]), default=-1)
        self._next = self.starting_step

    def log(self, values: dict[str, float], *, step: int, commit: bool) -> None:
        self._service.on_request()
        if commit and step >= self._next:
            self._next = step + 1
            self._service.points[self._run] += [(step, key, value) for key, value in values.items()]

    def finish(self) -> None:
        self._service.on_request()
        self._service.closed += 1


def install_wandb(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()

    def init(*, project: str, id: str, name: str, resume: str, **_: Any) -> _WandbRun:
        assert (project, resume) == ("ours", "allow")
        return _WandbRun(service, id, name)

    _install(monkeypatch, "wandb", init=init, Settings=SimpleNamespace)
    return service


class _Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class _Param(NamedTuple):
    key: str
    value: str


class _MlflowClient:
    """As mlflow's: it gives ids, adds whatever it gets, and refuses a parameter that it has."""

    def __init__(self, service: Service, tags: dict[str, dict[str, str]]) -> None:
        self._service, self._tags = service, tags

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        assert name == "ours"
        return SimpleNamespace(experiment_id="7") if self._tags else None

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[SimpleNamespace]:
        self._service.on_request()
        tag, _, value = filter_string.removeprefix("tags.").partition(" = ")
        found = [run for run, tags in self._tags.items() if tags.get(tag.strip("`")) == value.strip("'")]
        return [self._run(run) for run in found[:max_results]]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        run = f"run-{len(self._tags)}"
        self._tags[run] = tags
        self._service.open(run, run_name)
        return self._run(run)

    def update_run(self, run: str, status: str) -> None:
        self._service.on_request()

    def log_batch(self, run: str, metrics: Sequence[_Metric] = (), params: Sequence[_Param] = ()) -> None:
        self._service.on_request()
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self._service.points[run] += [(metric.step, metric.key, metric.value) for metric in metrics]
        if params:
            assert not {param.key for param in params} & set().union(*self._service.configs[run])
            self._service.configs[run].append({param.key: param.value for param in params})

    def set_terminated(self, run: str) -> None:
        self._service.on_request()
        self._service.closed += 1

    def _run(self, run: str) -> SimpleNamespace:
        newest = {key: value for _, key, value in self._service.points[run]}
        config = {key: value for config in self._service.configs[run] for key, value in config.items()}
        return SimpleNamespace(info=SimpleNamespace(run_id=run), data=SimpleNamespace(metrics=newest, params=config))


def install_mlflow(monkeypatch: pytest.MonkeyPatch) -> Service:
    service, tags = Service(), dict[str, dict[str, str]]()
    _install(monkeypatch, "mlflow", MlflowClient=lambda: _MlflowClient(service, tags))
    _install(monkeypatch, "mlflow.entities", Metric=_Metric, Param=_Param)
    return service


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


def hanging() -> tuple[Callable[[], None], threading.Event]:
    """A request that never ends, until the event is set."""
    end = threading.Event()

    def hang() -> None:
        end.wait()

    return hang, end
