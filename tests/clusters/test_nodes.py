"""The scripts that set up a node and run Ray on it, with a real Ray, and the files that a job uploads."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from commands import ROOT

CLUSTERS = ROOT / "clusters"
UPLOAD_BYTES = 2_000_000


@pytest.mark.parametrize("script", sorted(CLUSTERS.glob("*.sh")), ids=lambda script: script.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=10)
    assert os.access(script, os.X_OK)


@contextmanager
def started_node(home: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """A command line that starts a Ray head with a watcher through start-node.sh, and its environment."""
    ports = _free_ports(3)
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("cd" * 16)
    environment = os.environ | {"HOME": str(home), "RAY_ADDRESS": f"127.0.0.1:{ports[0]}", "GRACE_S": "4"}
    flags = ["--block", "--head", "--num-cpus=0", "--num-gpus=0", "--node-ip-address=127.0.0.1", f"--port={ports[0]}"]
    flags += [f"--ray-client-server-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"]
    flags += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={home}/r"]
    try:
        yield [str(CLUSTERS / "start-node.sh"), "none", "ray", "start", *flags], environment
    finally:
        for name in ("ray.pid", "node.pid"):
            with_id = home / ".simclr_ray" / name
            if with_id.exists() and _lives(int(with_id.read_text())):
                os.kill(int(with_id.read_text()), signal.SIGKILL)


def _wait_for(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    until = monotonic() + seconds
    while not happened():
        assert monotonic() < until
        sleep(0.2)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_node_starts_starts_again_and_drains_at_sigterm(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = Path("/tmp") / f"simclr_ray-{os.getpid()}"  # Ray's sockets need a short path
    try:
        with started_node(home) as (command, environment):
            log, identity = home / ".simclr_ray" / "node.log", home / ".simclr_ray" / "node.pid"
            out = _run(command, environment)
            first = int(identity.read_text())
            assert f"Ray is up, process {first}" in out
            _run(command, environment)
            second = int(identity.read_text())
            assert first != second
            assert not _lives(first)
            _wait_for(lambda: "watching none" in log.read_text())
            os.kill(second, signal.SIGTERM)
            _wait_for(lambda: not _lives(second))
            logged = log.read_text()
            assert re.search(r"preemption: SIGTERM: 4\.0 s left", logged)
            assert re.search(r"preemption: drained [0-9a-f]{56}", logged)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_a_node_that_does_not_start_is_an_error_with_its_cause(tmp_path: Path) -> None:
    environment = os.environ | {"SIMCLR_RAY_STATE": str(tmp_path)}
    command = [str(CLUSTERS / "start-node.sh"), "head", "bash", "-c", "echo no such luck; exit 3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "no such luck" in done.stderr


TOOLS = ("bash", "cat", "chmod", "dirname", "grep", "ln", "mkdir", "rm", "sha256sum")
STUB_PYTHON = """#!/bin/bash
# `python -m venv --clear VENV`; the environment's python answers with the folder of its headers.
mkdir -p "$4/bin"
for name in pip ray; do echo '#!/bin/bash' >"$4/bin/$name"; done
printf '#!/bin/bash\necho "$HEADERS"\n' >"$4/bin/python"
chmod +x "$4"/bin/*
"""


@pytest.mark.parametrize(
    ("has", "remedy"),
    [
        (("nvidia-smi",), "sudo apt-get install gcc libc6-dev python3.11-dev"),
        (("nvidia-smi", "Python.h"), "sudo apt-get install gcc libc6-dev"),
        (("nvidia-smi", "gcc"), "sudo apt-get install python3.11-dev"),
        (("nvidia-smi", "clang", "Python.h"), None),
        ((), None),
    ],
)
def test_set_up_names_what_a_gpu_machine_lacks_to_compile(
    has: tuple[str, ...], remedy: str | None, tmp_path: Path
) -> None:
    root, tools = tmp_path / "root", tmp_path / "bin"
    shutil.copytree(CLUSTERS, root / "clusters")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    for name, content in {"python3.11": STUB_PYTHON, **dict.fromkeys(has, "#!/bin/bash\n")}.items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    environment = {"PATH": str(tools), "HOME": str(tmp_path / "home"), "HEADERS": str(tools)}
    command = [str(tools / "bash"), str(root / "clusters" / "setup-node.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if remedy:
        assert (done.returncode, last.endswith(remedy)) == (1, True), done.stderr
        assert not (root / ".venv" / "set-up").exists()
    else:
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_set_up_installs_exactly_the_constraints_and_is_quick_the_second_time(tmp_path: Path) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    shutil.copytree(CLUSTERS, root / "clusters")
    shutil.copy(ROOT / "constraints.txt", root)
    project = '[project]\nname = "node"\nversion = "1"\ndependencies = ["ray"]\n[tool.setuptools]\npy-modules = []\n'
    (root / "pyproject.toml").write_text(project)
    command, environment = [str(root / "clusters" / "setup-node.sh")], os.environ | {"HOME": str(home)}
    [ray] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray in _run(command, environment)
    frozen = _run([str(root / ".venv" / "bin" / "pip"), "freeze", "--exclude-editable"], environment).split()
    assert set(map(str.lower, frozen)) <= set((ROOT / "constraints.txt").read_text().lower().split())
    assert (home / ".local" / "bin" / "ray").exists()
    start = monotonic()
    assert _run(command, environment) == "setup-node: up to date\n"
    assert monotonic() - start < 2
    kept = [line for line in frozen if not line.startswith("msgpack")]
    (root / "constraints.txt").write_text("\n".join(kept))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "add them: msgpack==" in done.stderr) == (1, True)


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_uploads_the_code_and_little_else(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    files = _run(["git", "-C", str(ROOT), "ls-files"], dict(os.environ)).splitlines()
    for name in {*files, ".rayignore"}:
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    clean = _uploaded(clone, tmp_path / "clean.zip")
    assert {"experiments/pretrain.py", "simclr_ray/data/order.py"} <= clean
    for name in ("runs/a/step-1/model.safetensors", "data/train/0.parquet", ".venv/lib/big", ".git/objects/big"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(bytes(UPLOAD_BYTES))
    assert _uploaded(clone, tmp_path / "used.zip") == clean
    _uploaded(ROOT, tmp_path / "this.zip")


def _uploaded(folder: Path, package: Path) -> set[str]:
    """The files that `ray job submit --working-dir` would send. An assertion fails if they are too many."""
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert package.stat().st_size < UPLOAD_BYTES
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}
