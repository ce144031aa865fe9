"""experiments/benchmark/gpu.py on a CPU: every check runs, and what fails is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from commands import FAST, ROOT
from forked import run_forked

BENCHMARK = ROOT / "experiments" / "benchmark"
FAILING = """
import os
import sys
from time import sleep

import gpu
from checks.check import Bar, Check, Failed, Figures, Skip

def met(machine):
    return Figures(ours=2.0, reference=2.0)

def missed(machine):
    return Figures(ours=3.0, reference=2.0)

def no_number(machine):
    return Figures(ours=float("nan"))

def said(machine):
    raise Failed("no compiler")

def raised(machine):
    raise ValueError("a bug")

def died(machine):
    os._exit(3)

def hung(machine):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    sleep(60)

def skipped(machine):
    raise Skip("no Ray")

functions = (met, missed, no_number, said, raised, died, hung, skipped)
gpu.CHECKS = [Check(run=each, claim="a claim", bar=Bar(most=1.0), limit_s=1) for each in functions]
sys.exit(gpu.main(["--cpu", "--out", "."]))
"""
IDLE = """
from checks.compiled import idle_part
print(idle_part([(0, 2), (1, 4), (2, 3), (6, 10)]))
"""


def run(folder: Path, *words: str) -> CompletedProcess[str]:
    environment = os.environ | FAST | {"PYTHONPATH": str(BENCHMARK), "CUDA_VISIBLE_DEVICES": ""}
    return run_forked(words, cwd=folder, env=environment, timeout=240)


def checks_in(folder: Path) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads((folder / "report.json").read_text())["checks"]}


@pytest.fixture(scope="module")
def on_a_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("report")
    done = run(folder, str(BENCHMARK / "gpu.py"), "--cpu", "--out", ".")
    return done, checks_in(folder)


def test_every_check_runs_on_a_cpu(on_a_cpu: tuple[CompletedProcess[str], dict[str, dict[str, Any]]]) -> None:
    done, checks = on_a_cpu
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name for name, check in checks.items() if check["verdict"] == "skip"} == {"out_of_memory"}
    judged = {name for name, check in checks.items() if check["verdict"] == "pass"}
    assert judged >= {"compiler", "batchnorm", "losses", "lars", "whole_step", "one_rank", "lost_peer"}


def test_every_check_is_listed_with_its_bar(
    on_a_cpu: tuple[CompletedProcess[str], dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    listed = run(tmp_path, str(BENCHMARK / "gpu.py"), "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(on_a_cpu[1])
    for line, check in zip(listed, on_a_cpu[1].values(), strict=True):
        assert check["bar"] in line
        assert line.endswith(check["claim"])


def test_what_fails_is_said_and_ends_with_exit_code_1(tmp_path: Path) -> None:
    assert run(tmp_path, "-c", FAILING).returncode == 1
    found = {name: (check["verdict"], check["reason"]) for name, check in checks_in(tmp_path).items()}
    assert found == {
        "met": ("pass", ""),
        "missed": ("fail", ""),
        "no_number": ("fail", ""),
        "said": ("fail", "no compiler"),
        "raised": ("fail", "ValueError: a bug"),
        "died": ("fail", "its process ended with exit code 3"),
        "hung": ("fail", "no result within 1 s"),
        "skipped": ("skip", "no Ray"),
    }
    assert "a bug" in (tmp_path / "raised.txt").read_text()
    with pytest.raises(ProcessLookupError):  # a check's own processes end with it
        os.kill(int((tmp_path / "hung.txt").read_text()), 0)


def test_only_checks_that_exist_can_be_chosen(tmp_path: Path) -> None:
    done = run(tmp_path, str(BENCHMARK / "gpu.py"), "--only", "step_rat")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --only step_rat: no such check: did you mean step_rate?\n"


def test_without_a_gpu_one_line_says_what_can_run(tmp_path: Path) -> None:
    done = run(tmp_path, str(BENCHMARK / "gpu.py"), "--out", ".")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no GPU that torch can use (")
    assert len(done.stderr.strip().splitlines()) == 1


def test_time_that_kernels_share_is_counted_once(tmp_path: Path) -> None:
    assert float(run(tmp_path, "-c", IDLE).stdout) == pytest.approx(0.2)
