"""An object store that fails on demand: a proxy on 127.0.0.1 in front of moto's."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from urllib.parse import urlsplit

import boto3
import pytest

from moto_server import CREDENTIALS, moto_server

BUCKET = "bucket"
SECRETS = (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], CREDENTIALS["AWS_SESSION_TOKEN"])
HOP_BY_HOP = frozenset({"connection", "expect", "transfer-encoding", "content-length", "keep-alive"})


class Fault(Enum):
    ANSWER = "an error instead of an answer"
    STALL = "no answer for a while, then the connection ends"
    RESET = "the connection is reset"
    CUT = "half of the body, then the connection ends"


@dataclass
class Rule:
    """The next `count` requests of this method ("" for any) whose path contains `path` get the fault."""

    fault: Fault
    count: int
    method: str
    path: str
    status: int
    code: str
    stall_s: float


class FaultyStore:
    """Passes every request on, until a test calls `fail`."""

    def __init__(self, endpoint: str) -> None:
        self.target = urlsplit(endpoint).netloc
        self.address = ""
        """HOST:PORT, for endpoint_override."""
        self.requests: list[str] = []
        """Every request since the last `fail`, as METHOD PATH."""
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()

    def fail(
        self,
        fault: Fault,
        count: int,
        method: str = "",
        path: str = "",
        *,
        status: int = 503,
        code: str = "SlowDown",
        stall_s: float = 0.0,
    ) -> None:
        """Replaces the current rule; a count of 0 ends the faults."""
        with self._lock:
            self._rules = [Rule(fault, count, method, path, status, code, stall_s)]
            self.requests = []

    def met(self, method: str, path: str) -> Rule | None:
        with self._lock:
            self.requests.append(f"{method} {path}")
            for rule in self._rules:
                if rule.count > 0 and rule.method in ("", method) and rule.path in path:
                    rule.count -= 1
                    return rule
        return None


@contextmanager
def moto_with_bucket() -> Iterator[str]:
    """moto's endpoint; meanwhile this process's default endpoint is a closed port, so that no request leaves it."""
    with moto_server() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        yield url


@contextmanager
def faulty_store(endpoint: str) -> Iterator[FaultyStore]:
    """Serves `endpoint` through a port of its own."""
    store = FaultyStore(endpoint)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    store.address = "{}:{}".format(*server.server_address[:2])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield store
    finally:
        store.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(store: FaultyStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def handle_any(self) -> None:
            body = _body(self.rfile, self.headers)
            rule = store.met(self.command, self.path)
            if rule is None or rule.fault is Fault.CUT:
                self._pass_on(body, cut=rule is not None)
            elif rule.fault is Fault.ANSWER:
                text = f"<Error><Code>{rule.code}</Code><Message>Because of {rule.code}.</Message></Error>"
                # Without a body there is no type: Azure's client would parse it, and end the process.
                kind = {} if self.command == "HEAD" else {"Content-Type": "application/xml"}
                self._answer(rule.status, kind | {"x-ms-error-code": rule.code}, text.encode())
            else:
                if rule.fault is Fault.STALL:
                    store.closing.wait(rule.stall_s)
                else:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def _pass_on(self, body: bytes, *, cut: bool) -> None:
            behind = http.client.HTTPConnection(store.target)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            content = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, content, length, cut=cut)
            behind.close()

        def _answer(
            self, status: int, headers: dict[str, str], content: bytes, length: str | None = None, *, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

    return Handler


def _body(stream: BufferedIOBase, headers: Message) -> bytes:
    if headers.get("Transfer-Encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("Content-Length") or 0))
    chunks = []
    while size := int(stream.readline().partition(b";")[0], 16):
        chunks.append(stream.read(size))
        stream.readline()
    stream.readline()
    return b"".join(chunks)
