"""Preemption notices from a cloud's metadata server: AWS, Google Cloud and Azure, over plain HTTP.

Not covered: Google's and Azure's host maintenance, which these machines survive or get a SIGTERM for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from time import time
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

T = TypeVar("T")

TIMEOUT_S = 2.0
"""The servers are a hop away and answer in milliseconds. Azure's first reply takes minutes."""
GCP_WARNING_S = 30.0
"""Google gives no deadline: the machine is taken away so long after the flag is set."""
AWS_TOKEN_S = "21600"
AZURE_GOING = ("Preempt", "Terminate")


class NoAnswer(Exception):
    """A metadata request failed, or its reply has not the documented form: to be repeated later."""


@dataclass(frozen=True)
class Notice:
    """This machine will be taken away."""

    reason: str
    deadline: float
    """Unix seconds."""


@dataclass(frozen=True)
class Risk:
    """This machine may be taken away: a reason to save, not to stop."""

    reason: str


Poll = Callable[[], Notice | Risk | None]
"""One poll of a metadata server. Raises NoAnswer."""


class Aws:
    """Polls EC2 by IMDSv2: a spot instance's interruption, two minutes ahead, and the recommendation to rebalance."""

    def __init__(self, base: str) -> None:
        self._base, self._token = base, ""

    def poll(self) -> Notice | Risk | None:
        action = self._request("spot/instance-action")
        if action is not None:
            reply = _json(action)
            deadline = _unix(_field(reply, "time", str), datetime.fromisoformat)
            return Notice(f"EC2 will {_field(reply, 'action', str)} this spot instance", deadline)
        advice = self._request("events/recommendations/rebalance")
        if advice is not None:
            since = _field(_json(advice), "noticeTime", str)
            return Risk(f"EC2 sees an elevated risk for this spot instance since {since}")
        return None

    def _request(self, path: str) -> str | None:
        """The reply; None for a 404: there is no such notice."""
        url = f"{self._base}/latest/meta-data/{path}"
        status, body = _fetch(url, {"X-aws-ec2-metadata-token": self._token}) if self._token else (401, "")
        if status == 401:  # no token yet, or it has expired
            self._token = self._new_token()
            status, body = _fetch(url, {"X-aws-ec2-metadata-token": self._token})
        return None if status == 404 else _require(url, status, body)

    def _new_token(self) -> str:
        token = _get(f"{self._base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": AWS_TOKEN_S}, "PUT")
        if not (token.isascii() and token.isprintable()):
            raise NoAnswer(f"no token: {token:.80}")  # a header could not carry it
        return token


def poll_gcp(base: str) -> Notice | None:
    """Polls Compute Engine: the preemption of a spot machine."""
    url = f"{base}/computeMetadata/v1/instance/preempted"
    flag = _get(url, {"Metadata-Flavor": "Google"}).strip()
    if flag not in ("TRUE", "FALSE"):
        raise NoAnswer(f"{url}: {flag:.80}")
    return Notice("Google Cloud preempts this machine", time() + GCP_WARNING_S) if flag == "TRUE" else None


def poll_azure(base: str) -> Notice | None:
    """Polls Azure: the scheduled events that end this machine. Those of its neighbours are listed with them."""
    header = {"Metadata": "true"}
    url = f"{base}/metadata/scheduledevents?api-version=2020-07-01"
    events = _field(_json(_get(url, header)), "Events", list)
    going = [event for event in events if _field(event, "EventType", str) in AZURE_GOING]
    if not going:
        return None
    url = f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    # Azure's names are case-insensitive, and it returns them in several spellings.
    name = _get(url, header).strip().lower()
    notices = []
    for event in going:
        if name in [str(resource).lower() for resource in _field(event, "Resources", list)]:
            at = _field(event, "NotBefore", str)
            deadline = _unix(at, parsedate_to_datetime) if at else time()  # empty: it has started
            notices.append((deadline, f"Azure: {_field(event, 'EventType', str)} of {name}"))
    return Notice(min(notices)[1], min(notices)[0]) if notices else None


def _fetch(url: str, headers: dict[str, str], method: str = "GET") -> tuple[int, str]:
    """The status and, of a success, the body."""
    direct = build_opener(ProxyHandler({}))  # a proxy would answer for its own machine
    try:
        with direct.open(Request(url, headers=headers, method=method), timeout=TIMEOUT_S) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        error.close()
        return error.code, ""
    except (OSError, HTTPException, ValueError) as error:
        raise NoAnswer(f"{url}: {error}") from None


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str:
    return _require(url, *_fetch(url, headers, method))


def _require(url: str, status: int, body: str) -> str:
    if status != 200:
        raise NoAnswer(f"{url}: HTTP {status}")
    return body


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise NoAnswer(f"no JSON: {text:.80}") from None


def _field(reply: object, name: str, kind: type[T]) -> T:
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, kind):
        raise NoAnswer(f"no {name} in {reply!s:.80}")
    return value


def _unix(text: str, parse: Callable[[str], datetime]) -> float:
    try:
        return parse(text).timestamp()
    except ValueError:
        raise NoAnswer(f"no time: {text:.80}") from None
