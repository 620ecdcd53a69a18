"""The access log on its way from proxies into the store."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from netbird_management.grpc.access_log import AccessLogs
from netbird_management.grpc.errors import Refused
from netbird_management.operations.access_log import AccessLogEntry, access_log_page
from netbird_management.operations.accounts import create_account
from netbird_wire.proxy_service_pb2 import AccessLog, SendAccessLogRequest
from tests.netbird_management.grpc.conftest import FakeProxy, Lab, eventually

MOMENT = datetime.now(UTC).replace(microsecond=0)


def log(lab: Lab, id_: str, **fields: Any) -> AccessLog:
    made = AccessLog(
        log_id=id_,
        account_id=lab.home.account_id,
        service_id="s",
        host="app.px.test",
        path="/",
        method="GET",
        response_code=200,
        auth_success=True,
        source_ip="::ffff:192.0.2.1",
        protocol="http",
    )
    made.timestamp.FromDatetime(MOMENT)
    for name, value in fields.items():
        if name == "user_groups":
            made.user_groups.extend(value)
        else:
            setattr(made, name, value)
    return made


async def entries(lab: Lab, count: int) -> dict[str, AccessLogEntry]:
    """What is stored, once it is so many."""

    async def page() -> list[AccessLogEntry]:
        found, _ = await access_log_page(lab.home.state, lab.home.account_id, page=1, page_size=100)
        return found

    return {entry.id: entry for entry in await eventually(page, lambda found: len(found) == count)}


@pytest.fixture
async def proxy(lab: Lab) -> FakeProxy:
    connected = lab.proxy()
    await connected.connect()
    return connected


async def send(proxy: FakeProxy, *logs: AccessLog) -> None:
    await proxy.unary("SendAccessLog", SendAccessLogRequest(logs=logs))


async def test_one_entry_and_many(lab: Lab, proxy: FakeProxy) -> None:
    """As NetBird sends them and as ours does; what is sent twice is stored once."""
    await proxy.unary("SendAccessLog", SendAccessLogRequest(log=log(lab, "one")))
    await send(proxy, log(lab, "two"), log(lab, "three"), log(lab, "one"))
    await send(proxy, log(lab, "two"), log(lab, "four"))
    assert set(await entries(lab, 4)) == {"one", "two", "three", "four"}


async def test_what_an_entry_says(lab: Lab, proxy: FakeProxy) -> None:
    """Reasons follow from the outcome; addresses are unmapped; what makes no sense becomes nothing."""
    phone = await lab.stock_peer("phone")
    await lab.group("engineering", phone)
    await send(
        proxy,
        log(lab, "good", user_id=phone.id),
        log(lab, "named", user_groups=["engineering", "unknown"]),
        log(lab, "denied", auth_success=False, response_code=403),
        log(lab, "broken", response_code=502, source_ip="nonsense", duration_ms=-1),
        log(lab, "stream", protocol="tcp", auth_success=False),
    )
    found = await entries(lab, 5)
    assert {id_: entry.reason for id_, entry in found.items()} == {
        "good": "",
        "named": "",
        "denied": "Authentication failed",
        "broken": "Request failed",
        "stream": "",
    }
    assert (found["good"].source_ip, found["good"].timestamp) == ("192.0.2.1", MOMENT)
    assert (found["broken"].source_ip, found["broken"].duration_ms) == ("", 0)
    groups = {group.name: group.id for group in lab.home.snapshot.groups.values()}
    assert set(found["good"].user_groups) == {groups["All"], groups["engineering"]}
    assert found["named"].user_groups == (groups["engineering"],)


async def test_entries_of_no_account_are_let_go(lab: Lab, proxy: FakeProxy) -> None:
    """Exchanges for unknown hosts belong to nobody; the rest of the batch is stored."""
    await send(proxy, log(lab, "nobody", account_id=""), log(lab, "gone", account_id="gone"), log(lab, "kept"))
    assert set(await entries(lab, 1)) == {"kept"}


async def test_more_than_can_be_stored_is_refused(lab: Lab) -> None:
    """All or nothing, so that a proxy can send the same batch again."""
    logs = AccessLogs(lab.home.state, capacity=2)
    logs.take([log(lab, "one")])
    with pytest.raises(Refused) as caught:
        logs.take([log(lab, "two"), log(lab, "three")])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    logs.take([log(lab, "two")])
    await logs.flush()
    logs.take([log(lab, "two"), log(lab, "three")])
    await logs.flush()
    assert set(await entries(lab, 3)) == {"one", "two", "three"}


async def test_a_write_that_is_broken_off_loses_nothing(lab: Lab) -> None:
    """Stopping may come in the midst of it: what was being stored is stored by the last flush, once."""
    logs = AccessLogs(lab.home.state)
    logs.take([log(lab, "one"), log(lab, "two")])
    async with lab.home.state.write_log(), asyncio.timeout(20):
        writing = asyncio.Task(logs.flush())  # waits for its turn
        while logs._waiting:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait((writing,))
    assert writing.cancelled()
    await logs.flush()
    assert set(await entries(lab, 2)) == {"one", "two"}


async def test_one_bad_entry_costs_itself(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """What the store will not take is lost and logged; the others of its batch are there."""
    logs = AccessLogs(lab.home.state)
    logs.take([log(lab, "one"), log(lab, "surrogate"), log(lab, "two")])
    one, (account, bad, size), *rest = logs._waiting.get(10)
    bad = tuple("\ud800" if value == "GET" else value for value in bad)
    logs._waiting.put_back([one, (account, bad, size), *rest])
    await logs.flush()
    assert set(await entries(lab, 2)) == {"one", "two"}
    assert "access_log.entry.lost" in caplog.text


async def test_a_store_that_is_away_costs_no_entry(
    lab: Lab, away: Callable[[], AbstractAsyncContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """What was answered waits until the store takes it; meanwhile there is room until there is none, then a refusal."""
    logs = AccessLogs(lab.home.state, capacity=2)
    logs.take([log(lab, "one")])
    async with away():
        assert not await logs.flush()
        logs.take([log(lab, "two")])
        with pytest.raises(Refused):
            logs.take([log(lab, "three")])
    assert await logs.flush()
    assert set(await entries(lab, 2)) == {"one", "two"}
    assert "access_log.entry.lost" not in caplog.text


async def test_promise_10_an_entry_is_bounded_whatever_a_proxy_reports(lab: Lab) -> None:
    """A moment far from now would stay for ever or go at once, and metadata or groups could be megabytes."""
    logs = AccessLogs(lab.home.state)
    far = [log(lab, "future"), log(lab, "past"), log(lab, "long", user_groups=["All"] * 10_000)]
    far[0].timestamp.FromDatetime(datetime(9999, 1, 1, tzinfo=UTC))
    far[1].timestamp.FromDatetime(datetime(1999, 1, 1, tzinfo=UTC))
    far[2].metadata.update({"a": "x" * 1000, "b": "x" * 1_000_000, "c": "é" * 1000, "d": "x" * 1500})
    logs.take(far)
    await logs.flush()
    found = await entries(lab, 3)
    moment = datetime.now(UTC)  # not `MOMENT`, which is when the tests were collected
    assert abs(found["future"].timestamp - moment - timedelta(days=1)) < timedelta(minutes=10)
    assert abs(found["past"].timestamp - moment + timedelta(days=1)) < timedelta(minutes=10)
    assert dict(found["long"].metadata or {}) == {"a": "x" * 1000, "c": "é" * 1000}
    assert len(found["long"].user_groups) == 1


async def test_promise_10_an_account_that_fills_the_log_takes_no_others_place(lab: Lab) -> None:
    """Others' entries are stored, in their own messages and in one with its; alone, it is refused and keeps them."""
    other, _ = await create_account(lab.home.state, email="b@lab.test", name="B")
    logs = AccessLogs(lab.home.state, capacity=10)
    logs.take([log(lab, f"mine{number}", account_id=other) for number in range(10)])
    with pytest.raises(Refused):
        logs.take([log(lab, "more", account_id=other)])
    logs.take([log(lab, "first")])
    logs.take([log(lab, "more", account_id=other), log(lab, "second")])
    await logs.flush()
    assert set(await entries(lab, 2)) == {"first", "second"}
    assert lab.home.state.counters["access_log_lost"] == 3


async def test_promise_10_the_queue_counts_bytes(lab: Lab) -> None:
    """Few entries may be as much as many."""
    logs = AccessLogs(lab.home.state, capacity_bytes=10_000)
    with pytest.raises(Refused):
        logs.take([log(lab, str(number), path="x" * 4000) for number in range(3)])
    logs.take([log(lab, str(number)) for number in range(3)])


async def test_promise_10_an_account_has_a_quota_of_entries(lab: Lab) -> None:
    """The oldest of an account's go, and no other account's."""
    other, _ = await create_account(lab.home.state, email="b@lab.test", name="B")
    logs = AccessLogs(lab.home.state, quota=3)
    for number in range(5):
        mine, theirs = log(lab, f"mine{number}", account_id=other), log(lab, f"theirs{number}")
        mine.timestamp.FromDatetime(MOMENT + timedelta(seconds=number))
        logs.take([mine, *([theirs] if number < 2 else [])])
        await logs.flush()
    found, _ = await access_log_page(lab.home.state, other, page=1, page_size=100)
    assert [entry.id for entry in found] == ["mine4", "mine3", "mine2"]
    assert set(await entries(lab, 2)) == {"theirs0", "theirs1"}
