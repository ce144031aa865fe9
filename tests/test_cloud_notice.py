"""What the three clouds say is understood, with the right deadline; whatever else comes back is no answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import monotonic, time

import pytest

from fake_metadata import FakeMetadata, fake_metadata
from simclr_ray import cloud_notice
from simclr_ray.cloud_notice import Aws, NoAnswer, Notice, Poll, Risk, poll_azure, poll_gcp

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC).timestamp()
CLOUDS: dict[str, Callable[[str], Poll]] = {
    "aws": lambda base: Aws(base).poll,
    "gcp": lambda base: lambda: poll_gcp(base),
    "azure": lambda base: lambda: poll_azure(base),
}


@pytest.fixture
def fake() -> Iterator[FakeMetadata]:
    with fake_metadata() as fake:
        yield fake


@pytest.fixture(params=CLOUDS)
def poll(request: pytest.FixtureRequest, fake: FakeMetadata) -> Poll:
    return CLOUDS[request.param](fake.base)


def event(kind: str, *machines: str, not_before: str = "Fri, 20 Nov 2026 12:00:30 GMT") -> dict[str, object]:
    return {"EventId": "1", "EventType": kind, "Resources": list(machines), "NotBefore": not_before}


def test_without_a_notice_there_is_none(poll: Poll) -> None:
    assert [poll(), poll()] == [None, None]


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_ec2_interrupts_at_the_time_it_gives(fake: FakeMetadata, action: str) -> None:
    fake.instance_action = {"action": action, "time": "2026-11-20T12:00:30Z"}
    fake.rebalance = {"noticeTime": "2026-11-20T11:58:00Z"}
    assert Aws(fake.base).poll() == Notice(f"EC2 will {action} this spot instance", NOON)


def test_a_recommendation_to_rebalance_is_a_risk(fake: FakeMetadata) -> None:
    fake.rebalance = {"noticeTime": "2026-11-20T11:58:00Z"}
    aws = Aws(fake.base)
    risk = aws.poll()
    assert isinstance(risk, Risk)
    assert aws.poll() == risk
    fake.rebalance = {"noticeTime": "2026-11-20T11:59:00Z"}
    assert aws.poll() != risk


def test_an_expired_token_is_replaced_and_a_valid_one_kept(fake: FakeMetadata) -> None:
    aws = Aws(fake.base)
    assert [aws.poll(), aws.poll(), fake.tokens_given] == [None, None, 1]
    fake.expire_token()
    fake.instance_action = {"action": "stop", "time": "2026-11-20T12:00:30Z"}
    assert isinstance(aws.poll(), Notice)
    assert fake.tokens_given == 2


@pytest.mark.parametrize("reply", [(500, b""), (403, b""), (200, b"a\nb"), (200, "ü".encode())], ids=str)
def test_a_token_that_is_none_is_no_answer_and_is_not_kept(fake: FakeMetadata, reply: tuple[int, bytes]) -> None:
    aws = Aws(fake.base)
    fake.token_reply = reply
    with pytest.raises(NoAnswer):
        aws.poll()
    fake.token_reply = None
    assert aws.poll() is None


def test_google_leaves_thirty_seconds(fake: FakeMetadata) -> None:
    fake.preempted = "TRUE"
    said = poll_gcp(fake.base)
    assert isinstance(said, Notice)
    assert said.deadline == pytest.approx(time() + 30, abs=1)


@pytest.mark.parametrize("kind", ["Preempt", "Terminate"])
def test_azure_ends_this_machine_not_before_the_time_it_gives(fake: FakeMetadata, kind: str) -> None:
    fake.vm_name = "Vmss_3"
    fake.events = [event("Reboot", "vmss_3", not_before=""), event(kind, "vmss_2", "VMSS_3")]
    assert poll_azure(fake.base) == Notice(f"Azure: {kind} of vmss_3", NOON)


def test_azure_has_started_where_it_gives_no_time(fake: FakeMetadata) -> None:
    fake.events = [event("Terminate", "vmss_3", not_before="Fri, 20 Nov 2099 12:00:30 GMT")]
    fake.events += [event("Preempt", "vmss_3", not_before="")]
    said = poll_azure(fake.base)
    assert isinstance(said, Notice)
    assert said.deadline == pytest.approx(time(), abs=1)


def test_azure_events_of_others_and_of_other_kinds_are_none_of_ours(fake: FakeMetadata) -> None:
    fake.events = [event("Preempt", "vmss_2", "vmss_33"), event("Reboot", "vmss_3"), event("Freeze", "vmss_3")]
    assert poll_azure(fake.base) is None


BROKEN = [
    (500, b""),
    (503, b"x"),
    (403, b""),
    (429, b""),
    (200, b""),
    (200, b"\xff\xfe"),
    (200, b"<html>"),
    (200, b"[]"),
]
BROKEN += [(200, b"{}"), (200, b'{"time": 3, "action": 4, "noticeTime": 5, "Events": 6}')]
BROKEN += [(200, b'{"time": "soon", "action": "stop", "Events": [{"EventType": 7}]}'), (200, b'{"Events": ["x"]}')]


@pytest.mark.parametrize("reply", BROKEN, ids=str)
def test_anything_else_is_no_answer_and_does_no_harm(fake: FakeMetadata, poll: Poll, reply: tuple[int, bytes]) -> None:
    fake.reply = reply
    with pytest.raises(NoAnswer):
        poll()
    fake.reply = None
    assert poll() is None


@pytest.mark.parametrize("broken", [{"Resources": "vmss_3"}, {"NotBefore": None}, {"NotBefore": "soon"}], ids=str)
def test_azure_events_that_make_no_sense_are_no_answer(fake: FakeMetadata, broken: dict[str, object]) -> None:
    fake.events = [event("Preempt", "vmss_3") | broken]
    with pytest.raises(NoAnswer):
        poll_azure(fake.base)


@pytest.mark.parametrize("cloud", ["gcp", "azure"])
def test_only_ec2_says_nothing_by_404(fake: FakeMetadata, cloud: str) -> None:
    fake.reply = 404, b""
    with pytest.raises(NoAnswer, match="404"):
        CLOUDS[cloud](fake.base)()
    assert Aws(fake.base).poll() is None


def test_a_server_that_hangs_is_no_answer(fake: FakeMetadata, poll: Poll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_notice, "TIMEOUT_S", 0.2)
    fake.hung.set()
    start = monotonic()
    with pytest.raises(NoAnswer, match="timed out"):
        poll()
    assert monotonic() - start < 2
    fake.hung.clear()
    assert poll() is None


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_server_that_is_not_there_is_no_answer(cloud: str) -> None:
    with fake_metadata() as fake:
        gone = fake.base
    with pytest.raises(NoAnswer, match="refused"):
        CLOUDS[cloud](gone)()


def test_no_proxy_is_asked_of_this_machine(poll: Poll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert poll() is None
