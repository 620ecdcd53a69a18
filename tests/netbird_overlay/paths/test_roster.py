"""The table of peers changes at once, and the work of their links follows in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Generator, Iterable
from hashlib import sha256
from itertools import pairwise

import pytest

from netbird_overlay.members import Member
from netbird_overlay.paths.roster import EAGER_PEERS, LINKS_A_TURN, STAGGER, Roster
from netbird_overlay.paths.servers import RemotePeer
from netbird_overlay.signal.messages import Offer
from tests.netbird_overlay.paths.house import acquaint, couple, exchange, reported, resident, say, servers
from tests.netbird_overlay.paths.links import negotiation

OWN = b"o" * 32


def key_of(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def peers(numbers: Iterable[int], version: str = "0.60.0") -> list[RemotePeer]:
    return [RemotePeer(key_of(number), version, lazy=True) for number in numbers]


class Log:
    """A roster whose entries are strings, and what it asked for, in order."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[str, bytes]] = []
        self.begins: list[tuple[float, bool]] = []
        self.roster = Roster(OWN, lambda: self.now, self._enter, self._keep, self._leave)  # type: ignore[arg-type]

    def _enter(self, peer: RemotePeer, begin: float, idle: bool) -> None:
        self.calls.append(("enter", peer.key))
        self.begins.append((begin, idle))
        self.roster.entries[peer.key] = peer.key  # type: ignore[assignment]

    def _keep(self, entry: bytes, _peer: RemotePeer) -> None:
        self.calls.append(("keep", entry))

    def _leave(self, entry: bytes) -> None:
        self.calls.append(("leave", entry))

    def pieces(self, numbers: Iterable[int]) -> Generator[None]:
        return self.roster.replace(peers(numbers))

    def whole(self, numbers: Iterable[int]) -> None:
        for _ in self.pieces(numbers):
            pass

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def test_a_turn_is_bounded_whatever_a_map_changes() -> None:
    """Links that close, stay and open count alike."""
    log = Log()
    log.whole(range(1000))
    log.calls.clear()
    sizes = [0, *(len(log.calls) for _ in log.pieces(range(500, 1500))), 1500]
    assert all(0 < later - earlier <= LINKS_A_TURN for earlier, later in pairwise(sizes))
    assert log.names() == ["leave"] * 500 + ["keep"] * 500 + ["enter"] * 500


def test_a_peer_that_left_is_gone_before_the_first_turn_ends() -> None:
    log = Log()
    log.whole(range(1000))
    log.calls.clear()
    pieces = log.pieces(range(1))
    next(pieces)
    assert set(log.roster.entries) == {key_of(0)}
    assert [key_of(number) in log.roster for number in range(1000)] == [True] + [False] * 999
    assert log.roster.get(key_of(999)) is None
    for _ in pieces:
        pass
    assert log.names() == ["leave"] * 999 + ["keep"]


def test_a_peer_is_entered_when_it_is_needed_and_once() -> None:
    log = Log()
    pieces = log.pieces(range(1000))
    next(pieces)
    assert key_of(999) in log.roster
    assert log.roster.get(key_of(999)) is not None
    assert log.calls[-1] == ("enter", key_of(999))
    for _ in pieces:
        pass
    assert sorted(key for _, key in log.calls) == sorted(map(key_of, range(1000)))


def test_a_later_map_takes_over_what_an_earlier_one_left() -> None:
    """Peers that only the earlier map has are never entered, and links that it had to close are closed once."""
    log = Log()
    log.whole(range(1000))
    log.calls.clear()
    earlier = log.pieces(range(2000, 3000))
    next(earlier)
    log.whole([*range(10), 4000])
    assert list(earlier) == []
    left = [key for name, key in log.calls if name == "leave"]
    assert sorted(left) == sorted(map(key_of, range(1000)))
    assert [key for name, key in log.calls if name == "enter"] == [*map(key_of, range(10)), key_of(4000)]
    assert set(log.roster.entries) == {*map(key_of, range(10)), key_of(4000)}


def test_the_old_link_of_a_peer_that_comes_back_is_closed_before_the_new_one_opens() -> None:
    log = Log()
    log.whole(range(200))
    log.calls.clear()
    earlier = log.pieces([])
    next(earlier)
    closed = {key for _, key in log.calls}
    key = next(key_of(number) for number in range(200) if key_of(number) not in closed)
    later = log.roster.replace([RemotePeer(key)])
    next(later)
    log.roster.get(key)
    of_key = [name for name, each in log.calls if each == key]
    assert of_key == ["leave", "enter"]


def test_a_cancellation_closes_links_and_leaves_the_rest_to_be_entered_on_demand() -> None:
    log = Log()
    log.whole(range(500))
    log.calls.clear()
    with contextlib.closing(log.pieces(range(1000, 2000))) as pieces:
        next(pieces)
    assert log.names() == ["leave"] * 500
    assert log.roster.get(key_of(1500)) is not None
    log.whole(range(1000, 2000))
    assert log.names().count("enter") == 1000


def test_links_begin_one_after_the_other_and_asleep_in_a_large_network() -> None:
    log = Log()
    log.whole(range(EAGER_PEERS + 1))
    assert [begin for begin, _ in log.begins] == pytest.approx([100 + STAGGER * n for n in range(EAGER_PEERS + 1)])
    assert {idle for _, idle in log.begins} == {True}
    log.begins.clear()
    log.now = 200
    log.whole(range(1000, 1000 + EAGER_PEERS))
    assert {idle for _, idle in log.begins} == {False}
    log.begins.clear()
    log.whole([])
    for _ in log.roster.replace([RemotePeer(OWN)]):
        pass
    assert log.begins == []


def test_a_link_that_raises_holds_up_no_other() -> None:
    """The owner reports errors by itself; what it does not catch ends the call, and the next one does the rest."""
    log = Log()
    pieces = log.pieces(range(200))
    next(pieces)
    with pytest.raises(RuntimeError):
        pieces.throw(RuntimeError())
    log.whole(range(200))
    assert log.names().count("enter") == 200


# On the loop --------------------------------------------------------------------------------------------------------


async def test_promise_10_the_links_of_a_large_map_leave_the_loop_to_others() -> None:
    async with resident("100.64.0.1") as a:
        sizes: list[int] = []

        async def watch() -> None:
            while len(sizes) < 2 or sizes[-1] < 1000:
                sizes.append(sum(a.paths.state(key).idle for key in keys))
                await asyncio.sleep(0)

        keys = [key_of(number) for number in range(1000)]
        a.node.set_members([Member(key, (f"100.65.{n // 250}.{1 + n % 250}",)) for n, key in enumerate(keys)], {})
        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await asyncio.sleep(0)
            await a.paths.replace_peers(peers(range(1000)))
        assert max(later - earlier for earlier, later in pairwise(sizes)) <= LINKS_A_TURN


async def test_a_peer_whose_turn_has_not_come_is_dialed_and_heard() -> None:
    """A map is under way, of which the peer is the last; a dial to it, and its message, do not wait."""
    async with servers() as group, couple(group, lazy=True) as (a, b, accepting):
        a.node.set_members([], {})
        a.paths.set_peers([])
        many = peers(range(2000))
        a.node.set_members([Member(b.key, (b.address,))], {})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(a.paths.replace_peers([*many, RemotePeer(b.key, "0.60.0", lazy=True)]))
            await asyncio.sleep(0)
            assert a.paths.wake(b.key)
        await exchange(a, b, accepting)


async def test_messages_count_from_the_moment_that_the_map_has_the_peer() -> None:
    with reported() as errors:
        async with servers() as group, resident("100.64.0.1") as a, resident("100.64.0.2") as b:
            a.paths.configure(group.configuration())
            b.paths.configure(group.configuration())
            acquaint(a, b)
            await a.until_home()
            a.paths.set_peers([])
            async with asyncio.TaskGroup() as tasks:
                applying = tasks.create_task(a.paths.replace_peers([*peers(range(200)), RemotePeer(b.key, "0.60.0")]))
                await asyncio.sleep(0)
                applying.cancel()
            await say(group, b, a.key, Offer(negotiation(secrets.token_bytes(5), relay=group.relays["relay"].url)))
            await a.until(lambda: a.kind(b) == "relay")
            assert a.paths.totals().get("signal_strangers", 0) == 0
    assert errors == []
