"""Entries on their way to management: how many and how large calls are, and how accounts share the queue."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy.defaults.access_log import waiting as waiting_module
from netbird_proxy.defaults.access_log.sender import Sender
from netbird_proxy.defaults.access_log.waiting import CALL_BYTES, CALL_ENTRIES, ENTRY_BYTES, OVERHEAD, Waiting
from netbird_proxy.testing.fakes import FakeProxy
from netbird_wire.proxy_service_pb2 import AccessLog

GRPC_DEFAULT_BYTES = 4 << 20


def entry(account: str, path: str = "/") -> bytes:
    return AccessLog(account_id=account, path=path).SerializeToString()


async def test_a_call_takes_a_thousand_entries(connect: Any) -> None:
    """Entries that come together leave in one call, up to 1,024 of them."""
    async with connect("access_log_batch") as (management, client):
        sender = Sender(FakeProxy(management=client), {"a"}, queue=4096)
        async with sender.running():
            for _ in range(CALL_ENTRIES + 1):
                sender.put("a", entry("a"))
        assert [len((await management.calls.get()).logs) for _ in range(2)] == [CALL_ENTRIES, 1]


async def test_no_call_exceeds_what_grpc_accepts(connect: Any) -> None:
    """Entries of the largest size arrive at a server with gRPC's default limit; a larger one is lost alone."""
    largest = entry("a", "x" * (ENTRY_BYTES - OVERHEAD - 64))
    count = 3 * CALL_BYTES // len(largest)
    async with connect("access_log_batch") as (management, client):
        proxy = FakeProxy(management=client)
        sender = Sender(proxy, {"a"}, queue=4096)
        async with sender.running():
            for account in ("a", None):
                for _ in range(count):
                    sender.put(account, largest)
            sender.put("a", b"x" * ENTRY_BYTES)
        calls = [management.calls.get_nowait() for _ in range(management.calls.qsize())]

    assert sum(len(call.logs) for call in calls) == 2 * count
    assert max(call.ByteSize() for call in calls) <= CALL_BYTES + ENTRY_BYTES < GRPC_DEFAULT_BYTES
    assert proxy.counters == {"access_log_lost": 1}


async def test_promise_10_a_refused_account_loses_its_own_entries_alone(connect: Any) -> None:
    """Management refuses one of three accounts; the entries of the others, from the same call, arrive."""

    async def refuse_b(context: Any) -> None:
        if any(log.account_id == "b" for log in management.last):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not this account")
        accepted.extend(log.account_id for log in management.last)

    accepted: list[str] = []
    async with connect("access_log_batch") as (management, client):
        management.answer = refuse_b
        proxy = FakeProxy(management=client)
        sender = Sender(proxy, {"a", "b", "c"}, queue=4096)
        async with sender.running():
            for account in "abcabc":
                sender.put(account, entry(account))

    assert sorted(accepted) == ["a", "a", "c", "c"]
    assert proxy.counters == {"access_log_lost": 2}


@pytest.mark.parametrize("size", [0, 5_000], ids=["many", "large"])
def test_promise_10_an_account_that_floods_the_queue_takes_no_others_place(size: int) -> None:
    """Three accounts flood the queue; a fourth still finds room for an eighth of what each of them holds."""
    waiting = Waiting(1000, 1_000_000)
    held = dict.fromkeys(("a", "b", "c"), 0)
    for _ in range(2000):
        for account in held:
            held[account] += not waiting.put(account, b"x" * size)
    assert max(held.values()) - min(held.values()) <= 1

    newcomer = 0
    while not waiting.put("d", b"x" * size):
        newcomer += 1
    assert newcomer > held["a"] // 8


def test_one_account_alone_gets_three_quarters() -> None:
    """The rest stays free for others."""
    waiting = Waiting(1000)
    assert sum(not waiting.put("a", b"") for _ in range(2000)) == 750


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 300)),
            st.sampled_from(["take", "take singly", "begin", "end"]),
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_and_all_room_comes_back(steps: list[Any]) -> None:
    """In any order of entries and calls, each accepted entry is in exactly one call, calls mix no strangers with
    accounts, no bound is exceeded, and after the last call the queue is as at the beginning."""
    places, unsent = 10, 2_000
    waiting = Waiting(places, unsent)
    accepted: list[tuple[str | None, bytes]] = []
    sent: list[tuple[str | None, bytes]] = []
    queued: list[waiting_module.Call] = []
    begun: list[waiting_module.Call] = []

    def take(*, batches: bool) -> None:
        queued.extend(waiting.take(batches=batches))
        assert len(waiting) == 0

    def begin() -> None:
        call = queued.pop(0)
        assert call.without_account == any(account is None for account, _ in call.parts)
        assert not call.without_account or len(call.parts) == 1
        sent.extend((account, each) for account, entries in call.parts for each in entries)
        waiting.begin(call)
        begun.append(call)

    for step in [*steps, "take"]:
        if isinstance(step, tuple):
            if not waiting.put(step[0], bytes(step[1])):
                accepted.append((step[0], bytes(step[1])))
        elif step == "begin" and queued:
            begin()
        elif step == "end" and begun:
            waiting.end(begun.pop(0))
        elif step.startswith("take"):
            take(batches=step == "take")
        assert 0 <= waiting.places <= places
        assert 0 <= waiting.free_bytes <= unsent
    while queued:
        begin()
    for call in begun:
        waiting.end(call)

    assert sorted(sent, key=str) == sorted(accepted, key=str)
    assert (waiting.places, waiting.free_bytes, waiting._held) == (places, unsent, {})
