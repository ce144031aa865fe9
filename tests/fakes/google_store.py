"""Google's object store on 127.0.0.1 with a bucket, which fails on demand: an emulator behind a FaultyStore.

In a process of its own, as pyarrow holds the GIL in the first request for a file's content. As a program it prints its
address, then reads arguments of `FaultyStore.fail`, an object per line, and answers each with the requests until then.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faulty_store import BUCKET, Fault, faulty_store


class GoogleStore:
    """A handle of that process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address: str = self._answer()

    def uri(self, path: str, bucket: str = BUCKET) -> str:
        """Its client hardly tries anything again: all patience is ours."""
        options = f"endpoint_override={self.address}&scheme=http&retry_limit_seconds=0.05"
        return f"gs://anonymous@{bucket}/{path}?{options}"

    def fail(self, fault: Fault, count: int, method: str = "", path: str = "", **more: object) -> list[str]:
        """See `FaultyStore.fail`. Returns the requests since the last call, as METHOD PATH."""
        assert self._process.stdin is not None
        rule = {"fault": fault.name, "count": count, "method": method, "path": path} | more
        print(json.dumps(rule), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def google_store() -> Iterator[GoogleStore]:
    store = GoogleStore()
    try:
        yield store
    finally:
        store.end()


def main() -> None:
    from gcp_storage_emulator.server import create_server

    logging.disable()
    emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    with emulator, faulty_store(f"http://127.0.0.1:{emulator._api._httpd.server_address[1]}") as store:
        print(json.dumps(store.address), flush=True)
        for line in sys.stdin:
            rule = json.loads(line)
            requests = store.requests
            store.fail(Fault[rule.pop("fault")], **rule)
            print(json.dumps(requests), flush=True)


if __name__ == "__main__":
    main()
