"""A metadata server on 127.0.0.1 with the APIs of three clouds: scripted replies, and the required headers checked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeMetadata:
    """Replies without a notice, until a test sets one."""

    def __init__(self) -> None:
        self.base = ""
        self.instance_action: dict[str, str] | None = None
        self.rebalance: dict[str, str] | None = None
        self.preempted = "FALSE"
        self.vm_name = "vmss_3"
        self.events: list[Any] = []
        self.reply: tuple[int, bytes] | None = None
        """The reply to every request but that for EC2's token, if set."""
        self.token_reply: tuple[int, bytes] | None = None
        self.hung = threading.Event()
        """If set, requests get no reply."""
        self.closing = threading.Event()
        self.tokens_given, self.token = 0, ""

    def expire_token(self) -> None:
        self.token = ""

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, bytes]:
        if self.hung.is_set():
            self.closing.wait(10)
        if path == "/latest/api/token":
            return (
                self._give_token()
                if method == "PUT" and headers["X-aws-ec2-metadata-token-ttl-seconds"]
                else (405, b"")
            )
        if self.reply:
            return self.reply
        if path.startswith("/latest/meta-data/"):
            if not self.token or headers["X-aws-ec2-metadata-token"] != self.token:
                return 401, b""
            items = {"spot/instance-action": self.instance_action, "events/recommendations/rebalance": self.rebalance}
            item = items[path.removeprefix("/latest/meta-data/")]
            return (404, b"") if item is None else (200, json.dumps(item).encode())
        if path == "/computeMetadata/v1/instance/preempted":
            return (200, self.preempted.encode()) if headers["Metadata-Flavor"] == "Google" else (403, b"")
        assert path.startswith("/metadata/"), path
        if headers["Metadata"] != "true":
            return 400, b""
        if path == "/metadata/instance/compute/name?api-version=2021-02-01&format=text":
            return 200, self.vm_name.encode()
        assert path == "/metadata/scheduledevents?api-version=2020-07-01", path
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": self.events}).encode()

    def _give_token(self) -> tuple[int, bytes]:
        if self.token_reply:
            return self.token_reply
        self.tokens_given += 1
        self.token = f"token-{self.tokens_given}"
        return 200, self.token.encode()


@contextmanager
def fake_metadata() -> Iterator[FakeMetadata]:
    fake = FakeMetadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = fake.answer(self.command, self.path, self.headers)
            if not fake.closing.is_set():
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            fake.closing.set()
            server.shutdown()
            thread.join()
