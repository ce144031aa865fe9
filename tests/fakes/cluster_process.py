"""A Ray cluster of fake nodes in a process of its own, so that its environment is its own too.

As a program: starts a head without CPUs and its dashboard, prints their addresses, then reads commands, one per line:
"add C" adds a node of C CPUs, "kill N" removes the Nth.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ClusterProcess:
    """A handle of the process that runs the cluster."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address, self.dashboard = self._answer()

    def add(self, cpus: int = 2) -> str:
        """The new node's id."""
        return self._send(f"add {cpus}")

    def kill(self, number: int) -> None:
        """Removes the node that was added as the `number`th, from 0, without a notice."""
        self._send(f"kill {number}")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()

    def _send(self, line: str) -> str:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(f"the cluster's process ended with {self._process.wait()}")


@contextmanager
def cluster_process(home: Path, environment: dict[str, str]) -> Iterator[ClusterProcess]:
    """With token authentication; the token lies below `home`."""
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text(secrets.token_hex(32))
    cluster = ClusterProcess(environment | {"HOME": str(home), "RAY_AUTH_MODE": "token"})
    try:
        yield cluster
    finally:
        cluster.end()


def main() -> None:
    os.environ.pop("RAY_ADDRESS", None)
    from ray.cluster_utils import Cluster

    free = {"dashboard_agent_listen_port": 0}  # another cluster of this machine has the usual one
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    cluster, nodes = Cluster(initialize_head=True, head_node_args=head | free), []
    try:
        answer([cluster.address, f"http://{cluster.head_node.webui_url}"])
        for line in sys.stdin:
            command, number = line.split()
            if command == "add":
                nodes.append(cluster.add_node(num_cpus=int(number), **free))
                answer(nodes[-1].node_id)
            else:
                cluster.remove_node(nodes[int(number)], allow_graceful=False)
                answer("done")
    finally:
        cluster.shutdown()


def answer(value: Any) -> None:
    print(f"answer {json.dumps(value)}", flush=True)


if __name__ == "__main__":
    main()
