"""A stand-in for AWS on 127.0.0.1: moto's server as a process of its own, with an empty account."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

START_S = 120.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_SESSION_TOKEN": "testing-token",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
"""What a client's environment needs besides AWS_ENDPOINT_URL: no key of this machine's user is ever sent."""


@contextmanager
def moto_server() -> Iterator[str]:
    """Yields the endpoint's URL; it serves every AWS service, from memory."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # Ray looks up AWS's managed policies, which moto loads only with this variable.
    process = subprocess.Popen(
        command,
        env=os.environ | CREDENTIALS | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    opener, deadline = build_opener(ProxyHandler({})), monotonic() + START_S
    while True:
        assert process.poll() is None, f"moto's server ended with {process.returncode}"
        try:
            opener.open(f"{url}/moto-api/", timeout=2).close()
            return
        except (URLError, OSError):
            assert monotonic() < deadline, f"moto's server did not answer within {START_S:.0f} s"
            sleep(0.1)
