"""Hosts on one machine: Linux namespaces with an address, a name, processes and a /tmp/ray of their own, on one switch.

All namespaces are held by processes that end with this one, however it ends, and nothing outlives those: neither
processes nor network devices. The machine's own network is not touched and cannot be reached from them.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

NETWORK = "10.77.0"
RAY = Path("/tmp/ray")
OF_A_HOST = ["--net", "--pid", "--mount", "--uts", "--mount-proc"]
TIED = ["setpriv", "--pdeathsig", "KILL"]
"""What follows is killed when this process ends."""
COMMAND_S = 20.0


@dataclass(frozen=True)
class Host:
    """`first`: the id, on this machine, of the first process in its namespaces; `port`: its device at the switch."""

    first: int
    address: str
    switch: int
    port: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Runs a command on the host."""
        self.started.append(subprocess.Popen([*TIED, *_on_host(self.first), *command], text=True, **options))
        return self.started[-1]

    def unplug(self) -> None:
        """From now on what it sends is lost, and so is what others send to it; neither side is told."""
        _at_switch(self.switch, f"ip link set {self.port} nomaster")

    def plug_in(self) -> None:
        _at_switch(self.switch, f"ip link set {self.port} master switch")

    def freeze(self) -> None:
        """All of its processes; its kernel goes on acknowledging what it receives."""
        _run([*_on_host(self.first), "sh", "-c", "kill -s STOP -- -1"])

    def thaw(self) -> None:
        _run([*_on_host(self.first), "sh", "-c", "kill -s CONT -- -1"])
        for process in self.started:
            process.send_signal(signal.SIGCONT)  # nsenter stops with its child


@contextmanager
def connected_hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """`count` hosts that reach each other; `folder` keeps their /tmp/ray."""
    RAY.mkdir(exist_ok=True)
    with ExitStack() as running:
        switch = running.enter_context(_namespaces("--net"))
        _at_switch(switch, "ip link add switch type bridge; ip link set switch up")
        yield [running.enter_context(_host(number, switch, folder)) for number in range(1, count + 1)]


def why_not() -> str | None:
    """Why this machine cannot make hosts; None where it can."""
    try:
        with _namespaces(*OF_A_HOST) as first:
            _at_switch(first, "ip link add switch type bridge; ip link add port type veth peer name eth0")
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        return f"needs root, util-linux and iproute2, to make network namespaces: {error}"
    return None


@contextmanager
def _host(number: int, switch: int, folder: Path) -> Iterator[Host]:
    name, address = f"host-{number}", f"{NETWORK}.{number}"
    ray, names = folder / name, folder / f"{name}.hosts"
    ray.mkdir()
    names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")  # as on Ubuntu: its own name is no way to it
    with _namespaces(*OF_A_HOST) as first:
        _at_switch(switch, f"ip link add port-{number} type veth peer name eth0 netns {first}")
        _at_switch(switch, f"ip link set port-{number} master switch up")
        mounts = f"mount --bind {ray} {RAY}; mount --bind {names} /etc/hosts; mount -t tmpfs shm /dev/shm"
        mounts += "; mount --bind /dev/null /etc/resolv.conf"  # there is no name server, whose answer to wait for
        links = f"ip link set lo up; ip link set eth0 up; ip address add {address}/24 dev eth0"
        _run([*_on_host(first), "sh", "-ec", f"hostname {name}; {mounts}; {links}; ip route add default dev eth0"])
        host = Host(first, address, switch, f"port-{number}")
        try:
            yield host
        finally:
            for process in host.started:
                process.kill()
                process.wait()


@contextmanager
def _namespaces(*kinds: str) -> Iterator[int]:
    """The id of the first process in new namespaces, which end with it."""
    held = [*TIED, "unshare", *kinds, "--fork", "--kill-child", "sleep", "infinity"]
    holder = subprocess.Popen(held, stderr=subprocess.PIPE, text=True)
    try:
        yield _child_of(holder)
    finally:
        holder.kill()
        holder.communicate()


def _child_of(holder: subprocess.Popen[str]) -> int:
    deadline = monotonic() + COMMAND_S
    while monotonic() < deadline and holder.poll() is None:
        for child in Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "sleep\n":
                return int(child)
        sleep(0.01)
    raise AssertionError(holder.communicate()[1] if holder.poll() else "no namespaces")


def _on_host(first: int) -> list[str]:
    return ["nsenter", "--target", str(first), "--net", "--pid", "--mount", "--uts", "--"]


def _at_switch(first: int, script: str) -> None:
    _run(["nsenter", "--target", str(first), "--net", "--", "sh", "-ec", script])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, timeout=COMMAND_S, text=True, check=False)
    assert done.returncode == 0, done.stderr
