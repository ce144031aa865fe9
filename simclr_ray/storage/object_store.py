"""Object stores through pyarrow.fs: opened by a URI that holds no secret, with retries of what may be temporary."""

from __future__ import annotations

import errno
import io
import logging
import os
import random
import re
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from simclr_ray.config import BadInput

T = TypeVar("T")

# A request that moves no byte for so long is sent again on another connection (an upload is given 6 s more). pyarrow's
# own 3 s take a busy store for a dead one.
REQUEST_TIMEOUT_S, CONNECT_TIMEOUT_S = 10.0, 5.0
# The client's own tries settle most faults within seconds. It shares a retry budget among all its requests, so that
# many at once run out of them early; hence our patience around it.
CLIENT_ATTEMPTS = 4
PATIENCE_S = 120.0
# Many requests for credentials at once, from one machine, are refused for a moment.
REFUSAL_PATIENCE_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0

# What may stand where in a URI. No secret fits: `key:secret@bucket` is no name, and no option carries one. A secret of
# AWS may hold a slash, which turns `secret@bucket` into a path: an @ in a path must be written %40.
HOSTS = {
    "s3": re.compile(r"[\w.-]+"),
    "gs": re.compile(r"(anonymous@)?[\w.-]+"),
    "abfs": re.compile(r"([\w$.-]+@)?[\w.-]+(:\d+)?"),
    "abfss": re.compile(r"([\w$.-]+@)?[\w.-]+(:\d+)?"),
    "file": re.compile(""),
}
_AZURE = ("blob_storage_authority", "dfs_storage_authority", "enable_tls", "credential_kind", "tenant_id", "client_id")
OPTIONS: dict[str, tuple[str, ...]] = {
    "s3": ("region", "endpoint_override", "scheme", "tls_ca_file_path"),
    "gs": ("endpoint_override", "scheme", "project_id", "retry_limit_seconds"),
    "abfs": _AZURE,
    "abfss": _AZURE,
    "file": (),
}
VALUE = re.compile(r"[\w.:/\[\]-]+")

# Errors that another try would meet again, as pyarrow 26 words them; seen for each kind of store.
REFUSALS = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|REQUEST_TIME_TOO_SKEWED|NO_SUCH_BUCKET"
    r"|\w*(TOKEN|SIGNATURE|CREDENTIAL|AUTHENTICATION|PARAMETER|VALIDATION|UNRECOGNIZED)\w*) "
    r"|HTTP status (3\d\d|4(?!08|29)\d\d)"
    r"|Azure Error: \[\w*\] (3\d\d|4(?!08|29)\d\d)"
    r"|Bucket '.*' not found"
)
# Of a file rather than of the store; the second where it went between two requests.
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
GONE = re.compile(r"AWS Error (NO_SUCH_KEY|RESOURCE_NOT_FOUND) ")

log = logging.getLogger(__name__)


class Refused(OSError, BadInput):
    """An error that retries do not mend: credentials, rights, a bucket that does not exist."""


def open_store(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that a URI names, with timeouts and retries, and the path in it.

    Credentials come from the store's standard places alone. Raises BadInput for a URI that cannot be opened, without
    repeating one that may hold a secret.
    """
    scheme, host, path, options = _parsed(uri)
    try:
        if scheme == "s3":
            return _s3(host, options), f"{host}{path}".rstrip("/")
        if scheme == "gs" and "retry_limit_seconds" not in options:
            # Its own limit is 15 minutes, without a warning.
            uri += f"{'&' if options else '?'}retry_limit_seconds={int(REQUEST_TIMEOUT_S * CLIENT_ATTEMPTS)}"
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise BadInput(f"cannot open {uri}: {_reason(error)}; {_takes(scheme)}") from None


def with_retries(where: str, operation: Callable[[], T], patience_s: float | None = None) -> T:
    """The result of `operation`, repeated for `patience_s` (PATIENCE_S) while the store fails temporarily.

    Then, or at once where a retry is of no use, it raises OSError with one line that begins with `where`.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    start, pause, warned = monotonic(), FIRST_PAUSE_S, False
    while True:
        try:
            return operation()
        except OSError as error:
            if error.errno in ABSENT:
                raise
            if GONE.search(str(error)):
                raise FileNotFoundError(errno.ENOENT, _reason(error), where) from None
            refused = isinstance(error, PermissionError) or REFUSALS.search(str(error)) is not None
            if monotonic() - start + pause > (REFUSAL_PATIENCE_S if refused else patience_s):
                raise (Refused if refused else OSError)(f"{where}: {_reason(error)}") from error
            if not (refused or warned):
                warned = True
                log.warning("%s: %s; trying again for %.0f s", where, _reason(error), patience_s)
        sleep(pause * random.Random().uniform(0.5, 1.0))  # many that were cut off together do not come back together
        pause = min(2 * pause, LONGEST_PAUSE_S)


class StoreFile:
    """A file of an object store, every request with retries; the part of BinaryIO that pyarrow and tarfile use."""

    def __init__(self, where: str, filesystem: fs.FileSystem, path: str) -> None:
        self._where, self._at = where, 0
        self._file = with_retries(where, lambda: filesystem.open_input_file(path))
        self._size: int = with_retries(where, self._file.size)

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if size < 0 else min(size, left)

        def fetch() -> bytes:
            content = self._file.read_at(count, self._at)
            if len(content) != count:
                raise OSError(f"the store gave {len(content)} of {count} bytes")
            return content

        content = with_retries(self._where, fetch) if count else b""
        self._at += count
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> StoreFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _parsed(uri: str) -> tuple[str, str, str, dict[str, str]]:
    """Scheme, host, path and options. What is refused here is never repeated: it may be a secret."""
    scheme = uri.partition("://")[0]
    if scheme not in HOSTS:
        raise BadInput(f"cannot open {scheme}://...: give a folder, or an s3://, gs:// or abfs:// URI")
    try:
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise BadInput(f"cannot open this {scheme}:// URI: it is no URI; {_takes(scheme)}") from None
    misplaced = parts.fragment or (parts.netloc and "@" in parts.path)
    if misplaced or not HOSTS[scheme].fullmatch(parts.netloc):
        raise BadInput(f"cannot open this {scheme}:// URI: {_takes(scheme)}")
    if not options.keys() <= set(OPTIONS[scheme]) or not all(map(VALUE.fullmatch, options.values())):
        raise BadInput(f"cannot open this {scheme}:// URI with its options: {_takes(scheme)}")
    return scheme, parts.netloc, unquote(parts.path), options


def _takes(scheme: str) -> str:
    place = "CONTAINER@ACCOUNT.dfs.core.windows.net" if scheme.startswith("abfs") else "BUCKET"
    return (
        f"give {scheme}://{place}/PATH, after a ? any of the options {', '.join(OPTIONS[scheme])}, "
        "and no credentials: those come from the environment, their files or the machine's role"
    )


def _s3(bucket: str, options: dict[str, str]) -> fs.S3FileSystem:
    # Of a filesystem made by its class, pyarrow does not look at these.
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = options.get("endpoint_override", environment)
    region = options.get("region") or (None if endpoint else _region(bucket))
    given: dict[str, Any] = options | {"endpoint_override": endpoint, "region": region}
    return fs.S3FileSystem(
        **given,
        request_timeout=REQUEST_TIMEOUT_S,
        connect_timeout=CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=CLIENT_ATTEMPTS),
        allow_delayed_open=True,  # a small file in one request instead of three, and never without its content
    )


def _region(bucket: str) -> str | None:
    try:
        return with_retries(f"s3://{bucket}", lambda: fs.resolve_s3_region(bucket))
    except Refused:
        raise
    except OSError:
        return None  # the first request will raise the error, where it is handled


def _reason(error: BaseException) -> str:
    """The first line, from the store's own words on, without Google's list of what its client tried."""
    line = (str(error).splitlines() or [""])[0].partition(" error_info={")[0]
    return line[max(0, line.find("AWS Error")) :]
