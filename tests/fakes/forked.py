"""Commands in processes of their own, forked from one that has imported what they import: that is half of their time.

The process ends as any Python program does. `tests/cli/test_experiments.py` starts every command afresh, as users do.
As a program: the process that is forked; it reads requests from the socket that is its standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

IMPORTED = ("torch.distributed", "ray.data", "ray.train.torch", "ray.tune", "simclr_ray.orchestrate.pretrain")
IMPORTED += ("simclr_ray.cli.pretrain", "simclr_ray.orchestrate.sweep.tune", "simclr_ray.export.encoder", "tyro")


class Command:
    """What the tests use of `subprocess.Popen`, for a process that is another's child."""

    def __init__(self, server: socket.socket, arguments: Sequence[str], cwd: str, env: dict[str, str]) -> None:
        self._out, self._err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 (read at the end)
        self._ended, other = socket.socketpair()
        request = json.dumps([list(arguments), cwd, env]).encode()
        fds = [self._out.fileno(), self._err.fileno(), other.fileno()]
        socket.send_fds(server, [len(request).to_bytes(4, "big") + request], fds)
        other.close()
        self._answers = self._ended.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and _readable(self._ended, 0):
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not _readable(self._ended, timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return _content(self._out), _content(self._err)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_forked(arguments: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> Command:
    """Starts `python *arguments`: a script and its arguments, or -c and code."""
    return Command(_server(), arguments, str(cwd or Path.cwd()), dict(os.environ) if env is None else env)


def run_forked(arguments: Sequence[str], *, timeout: float, **where: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python *arguments` to its end, as `subprocess.run` does; it is killed after `timeout` seconds."""
    command = start_forked(arguments, **where)
    try:
        out, err = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(list(arguments), command.wait(), out, err)


def _readable(end: socket.socket, timeout: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        return bool(selector.select(timeout))


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@cache
def _server() -> socket.socket:
    ours, its = socket.socketpair()
    process = subprocess.Popen([sys.executable, __file__], stdin=its, stdout=subprocess.DEVNULL)
    its.close()
    atexit.register(process.wait, 10)
    atexit.register(ours.close)
    return ours


def main() -> None:
    for name in IMPORTED:
        __import__(name)
    arguments = _serve(socket.socket(fileno=os.dup(0)))
    if arguments is None:
        return
    if arguments[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def _serve(requests: socket.socket) -> list[str] | None:
    """Forks a process for each request and returns its arguments there; None here, once no request can come."""
    children: dict[int, socket.socket] = {}
    reaped, wakeup = os.pipe()
    for end in (reaped, wakeup):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup)
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(reaped, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if reaped in ready:
                os.read(reaped, 4096)
                _report(children)
            if requests not in ready:
                continue
            head, fds, _, _ = socket.recv_fds(requests, 4, 3)
            if not head:
                return None
            arguments, cwd, env = json.loads(_exactly(requests, int.from_bytes(head, "big")))
            process_id = os.fork()
            if process_id == 0:
                _become(cwd, env, fds)
                return arguments
            children[process_id] = socket.socket(fileno=fds[2])
            children[process_id].sendall(b"%d\n" % process_id)
            os.close(fds[0])
            os.close(fds[1])


def _report(children: dict[int, socket.socket]) -> None:
    while children:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if process_id == 0:
            return
        with children.pop(process_id) as end, contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            end.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _exactly(requests: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += requests.recv(size - len(found))
    return found


def _become(cwd: str, env: dict[str, str], fds: list[int]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    from ray._raylet import AuthenticationTokenLoader, Config

    null = os.open(os.devnull, os.O_RDONLY)
    for fd, standard in zip((null, *fds[:2]), (0, 1, 2), strict=True):
        os.dup2(fd, standard)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # Ray read them when it was imported; this process's own Ray sets RAY_AUTH_MODE at its first start.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[1:1] = paths


if __name__ == "__main__":
    main()
