"""Handshakes to many peers go out a few at a time, and none is forgotten."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from hashlib import sha256

import pytest

from netbird_overlay.engine import Endpoint
from netbird_overlay.greetings import A_TURN, INTERVAL, JITTER, REPEATS, Greetings
from netbird_overlay.members import Member
from netbird_overlay.testing import loopback_node
from netbird_wire.envelope import public_key

IP_PKTINFO = 8
"""Linux's number, which the module `socket` does not have."""
KEYS = [number.to_bytes(32, "big") for number in range(1000)]


class Outside:
    """Records handshakes. `full` makes each fail, as a full queue does; `gone` are peers without endpoint."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.full = False
        self.gone: set[bytes] = set()
        self.greetings = Greetings(self.handshake, lambda key: key not in self.gone, lambda: None, pick=max)

    def handshake(self, key: bytes) -> bool:
        if not self.full:
            self.sent.append(key)
        return not self.full

    def play(self, now: float, until: float) -> None:
        """Let virtual time pass, from one due time to the next."""
        while now <= until:
            due = self.greetings.greet(now)
            if due is None:
                return
            now = max(now, due)


async def test_a_turn_sends_a_limited_number() -> None:
    """The first turn greets as many peers as its limit, each further turn as many again, until all were greeted."""
    outside = Outside()
    outside.greetings.add(KEYS, 0.0)
    turns = [len(outside.sent)]
    while len(outside.sent) < len(KEYS):
        outside.greetings.greet(0.0)
        turns.append(len(outside.sent) - sum(turns))
    assert turns[:-1] == [A_TURN] * (len(KEYS) // A_TURN)
    assert Counter(outside.sent) == Counter(KEYS)


async def test_each_peer_is_greeted_until_it_answers() -> None:
    """A silent peer gets the first handshake and the repeats, with jitter between; one that answered gets no more."""
    outside = Outside()
    outside.greetings.add(KEYS[:2], 0.0)
    outside.greetings.answered(KEYS[0])
    assert outside.greetings.greet(INTERVAL) == INTERVAL + JITTER
    outside.play(INTERVAL, 100.0)
    assert Counter(outside.sent) == {KEYS[0]: 1, KEYS[1]: 1 + REPEATS}
    assert len(outside.greetings) == 0


async def test_a_handshake_that_did_not_go_out_is_tried_again() -> None:
    """A full queue costs no repeat, and a peer that left is forgotten."""
    outside = Outside()
    outside.full = True
    outside.greetings.add(KEYS[:2], 0.0)
    outside.play(0.0, 10 * INTERVAL)
    assert len(outside.greetings) == 2
    outside.full = False
    outside.gone = {KEYS[1]}
    outside.play(20.0, 100.0)
    assert Counter(outside.sent) == {KEYS[0]: 1 + REPEATS}
    assert len(outside.greetings) == 0


@pytest.mark.timeout(60)
async def test_every_peer_of_a_large_account_is_greeted() -> None:
    """Each of 1,500 stored peers gets a handshake, though the engine's queue is shorter."""
    count = 1500
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        outside.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        outside.bind(("", 0))
        outside.setblocking(False)
        greeted: set[str] = set()
        complete = asyncio.Event()

        def read() -> None:
            while True:
                try:
                    datagram, notes, _, _ = outside.recvmsg(2048, 64)
                except BlockingIOError:
                    return
                assert len(datagram) == 148
                for _, _, note in notes:
                    greeted.add(socket.inet_ntoa(struct.unpack("=i4s4s", note)[2]))
                if len(greeted) == count:
                    complete.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(outside, read)
        port = outside.getsockname()[1]
        async with loopback_node("100.64.0.1") as node, asyncio.TaskGroup() as group:
            keys = [public_key(sha256(b"%d" % number).digest()) for number in range(1, count + 1)]
            members = [Member(key, (f"100.65.{n // 250}.{1 + n % 250}",)) for n, key in enumerate(keys)]
            endpoints = {key: Endpoint(f"127.1.{n // 250}.{1 + n % 250}", port) for n, key in enumerate(keys)}
            greeting = group.create_task(node.keep_greeting())
            node.set_members(members, endpoints)
            await complete.wait()
            greeting.cancel()
        loop.remove_reader(outside)
