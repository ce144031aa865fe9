"""experiments/benchmark/gpu.py on a CPU: every check runs, and what fails is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

from commands import FAST, ROOT
from forked import run_forked

BENCHMARK = ROOT / "experiments" / "benchmark"
IN_ONE_PROCESS = """
import json
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from time import sleep

import gpu
from checks.check import Bar, Check, Failed, Figures, Skip
from checks.compiled import idle_part
from simclr_ray.config import BadInput

def refusal(*words):
    try:
        gpu.main(list(words))
    except BadInput as error:
        return str(error)

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

with redirect_stdout(StringIO()) as listed:
    gpu.main(["--list"])
answers = {"listed": listed.getvalue(), "idle": idle_part([(0, 2), (1, 4), (2, 3), (6, 10)])}
answers |= {"unknown": refusal("--only", "step_rat"), "no GPU": refusal("--out", ".")}
functions = (met, missed, no_number, said, raised, died, hung, skipped)
gpu.CHECKS = [Check(run=each, claim="a claim", bar=Bar(most=1.0), limit_s=1) for each in functions]
answers["code"] = gpu.main(["--cpu", "--out", "."])
Path("answers.json").write_text(json.dumps(answers))
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where IN_ONE_PROCESS left its answers and the report of checks that fail in every way."""
    folder = tmp_path_factory.mktemp("answers")
    done = run(folder, "-c", IN_ONE_PROCESS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "answers.json").read_text())


def test_every_check_runs_on_a_cpu(on_a_cpu: tuple[CompletedProcess[str], dict[str, dict[str, Any]]]) -> None:
    done, checks = on_a_cpu
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name for name, check in checks.items() if check["verdict"] == "skip"} == {"out_of_memory"}
    judged = {name for name, check in checks.items() if check["verdict"] == "pass"}
    assert judged >= {"compiler", "batchnorm", "losses", "lars", "whole_step", "one_rank", "lost_peer"}


def test_every_check_is_listed_with_its_bar(
    on_a_cpu: tuple[CompletedProcess[str], dict[str, dict[str, Any]]], answers: dict[str, Any]
) -> None:
    listed = answers["listed"].splitlines()
    assert [line.split()[0] for line in listed] == list(on_a_cpu[1])
    for line, check in zip(listed, on_a_cpu[1].values(), strict=True):
        assert check["bar"] in line
        assert line.endswith(check["claim"])


def test_what_fails_is_said_and_ends_with_exit_code_1(folder: Path, answers: dict[str, Any]) -> None:
    assert answers["code"] == 1
    found = {name: (check["verdict"], check["reason"]) for name, check in checks_in(folder).items()}
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
    assert "a bug" in (folder / "raised.txt").read_text()


def test_the_processes_of_a_check_end_with_it(folder: Path) -> None:
    child = int((folder / "hung.txt").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_only_checks_that_exist_can_be_chosen(answers: dict[str, Any]) -> None:
    assert answers["unknown"] == "--only step_rat: no such check: did you mean step_rate?"


def test_without_a_gpu_one_line_says_what_can_run(answers: dict[str, Any]) -> None:
    assert answers["no GPU"].startswith("no GPU that torch can use (")
    assert answers["no GPU"].endswith("): --cpu runs what a CPU can")


def test_time_that_kernels_share_is_counted_once(answers: dict[str, Any]) -> None:
    assert answers["idle"] == pytest.approx(0.2)
