"""What depends on the device, where it can be seen without one: its clock, its float32, its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simclr_ray.evaluate.features import encode
from simclr_ray.methods.method import Method
from simclr_ray.model.encoder import Encoder
from simclr_ray.orchestrate.sweep.trial import TrialRun
from simclr_ray.train import memory, metrics
from simclr_ray.train.compiler import set_up_compiler
from simclr_ray.train.memory import CONTEXT_BYTES, limit_memory
from simclr_ray.train.metrics import Meter
from simclr_ray.train.step import forward_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Gpu:
    """Does what it is given one after the other, as the process goes on; both clocks in seconds."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.busy_until = 0.0
        patch.setattr(metrics, "monotonic", lambda: self.now)
        patch.setattr(metrics, "mark", self.mark)

    def mark(self, device: torch.device) -> float:
        assert device == GPU
        self.busy_until = max(self.now, self.busy_until)
        return self.busy_until

    def run(self, seconds: float) -> None:
        self.busy_until = max(self.now, self.busy_until) + seconds


@pytest.mark.parametrize(
    ("data_s", "fraction"),
    [
        (0.5, 0.0),  # of a step of 1 s: the process waits half of its time, the GPU never
        (2.0, 0.5),  # the GPU waits half of its time, the process all of it
    ],
)
def test_waiting_for_data_is_what_the_gpu_waits(
    data_s: float, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, steps = Gpu(monkeypatch), 2 * metrics.MOST_MARKS
    meter = Meter(GPU)

    def stream() -> Any:
        for _ in range(steps):
            gpu.now += data_s
            yield "a batch"

    gpu.run(1.0)
    for _ in meter.timed(stream()):
        gpu.run(1.0)
        gpu.now = max(gpu.now, gpu.busy_until - 3.0)  # at most three steps are queued
        meter.trained(10)
    gpu.now = gpu.busy_until
    row = meter.read()
    assert row["data_wait_fraction"] == pytest.approx(fraction, abs=0.02)
    assert row["images_per_s"] == pytest.approx(10 / max(data_s, 1.0), rel=0.02)
    assert not meter._waits


def test_float32_means_the_same_whatever_the_environment_has_set() -> None:
    def set_otherwise() -> None:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = False

    def found() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    class Mean(Encoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    set_otherwise()
    forward_of(Method(), (0.5,) * 3, (0.2,) * 3, "float32", CPU, compiled=False)
    assert found() == ("highest", True)
    set_otherwise()
    encode(Mean(), torch.zeros(2, 4, 4, 3, dtype=torch.uint8), (0.5,) * 3, (0.2,) * 3)
    assert found() == ("highest", True)


def test_the_compiler_has_the_cpus_of_the_worker_unless_the_environment_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 7)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")
    set_up_compiler(3.9)
    assert torch._inductor.config.compile_threads == 7
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    for cpus, threads in ((3.9, 3), (0.5, 1), (96.0, 32)):
        set_up_compiler(cpus)
        assert torch._inductor.config.compile_threads == threads


def test_a_process_is_kept_to_its_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    total, limits = 80 << 30, []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, index: limits.append((part, index)))
    unnumbered = torch.device("cuda")  # as of a run in its own process; torch takes no such device here
    for part, device in ((0.25, GPU), (0.5, unnumbered), (1.0, GPU), (2.0, GPU), (0.0, CPU)):
        limit_memory(part, device)
    assert limits == [(0.25 - CONTEXT_BYTES / total, 0), (0.5 - CONTEXT_BYTES / total, None)]


def test_the_memory_of_a_trial_is_free_before_the_next_one_begins_in_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(memory.gc, "collect", lambda: done.append("collected"))
    trial = TrialRun.__new__(TrialRun)
    monkeypatch.setattr(trial, "_end", lambda: done.append("ended"))
    monkeypatch.setattr(trial, "setup", lambda config: done.append(config["run"]))
    assert trial.reset_config({"run": "the next"})
    assert done == ["ended", "collected", "emptied", "the next"]
    assert trial._error is None
