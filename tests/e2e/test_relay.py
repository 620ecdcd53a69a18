"""Our relay client and our relay server together, on loopback, without any counterpart of tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from netbird_overlay.relay import Relays, relay_token
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.thread import RelayThread
from netbird_wire.backoff import Backoff

SECRET = "a secret of sixteen characters"
ALICE, BOB = bytes([1]) * 32, bytes([2]) * 32


class Peer:
    """A client whose callbacks are kept, with an event at each."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.datagrams: list[bytes] = []
        self.paths: set[bytes] = set()
        self.changed = asyncio.Event()
        self.relays = Relays(
            key,
            on_datagrams=self.arrived,
            on_online=lambda key, server: self.note(self.paths.add, key),
            on_offline=lambda key, server: self.note(self.paths.discard, key),
            on_home=self.changed.set,
            backoff=Backoff(0.01, 0.1),
        )

    def note(self, change: object, key: bytes) -> None:
        assert callable(change)
        change(key)
        self.changed.set()

    def arrived(self, key: bytes, server: str, datagrams: list[bytes]) -> None:
        self.datagrams += datagrams
        self.changed.set()

    async def until(self, predicate: object) -> None:
        assert callable(predicate)
        while not predicate():
            self.changed.clear()
            await self.changed.wait()


class Server:
    """The relay in its thread, which may be stopped and started on the same port."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.url = f"rel://127.0.0.1:{self.sock.getsockname()[1]}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with RelayThread(Identity(SECRET, self.url), Limits()).running([self.sock]):
            yield


@asynccontextmanager
async def connected(*peers: Peer, url: str) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(peer.relays.run()) for peer in peers]
        for peer in peers:
            peer.relays.configure([url], relay_token(SECRET, 4_000_000_000))
        try:
            async with asyncio.timeout(30):
                yield
        finally:
            for run in runs:
                run.cancel()


async def meet(alice: Peer, bob: Peer) -> None:
    for one, other in ((alice, bob), (bob, alice)):
        await one.until(lambda peer=one: peer.relays.home)
        one.relays.open(other.key, one.relays.home)
    for one, other in ((alice, bob), (bob, alice)):
        await one.until(lambda one=one, other=other: other.key in one.paths)


def runs_on(loop: str, coroutine: object) -> None:
    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_datagrams_arrive_complete_and_in_order_in_both_directions(loop: str) -> None:
    async def story() -> None:
        server, alice, bob = Server(), Peer(ALICE), Peer(BOB)
        with server.sock:
            async with server.running(), connected(alice, bob, url=server.url):
                await meet(alice, bob)
                for one, other in ((alice, bob), (bob, alice)):
                    sent = [number.to_bytes(4, "big") + bytes(number % 1400) for number in range(400)]
                    for at in range(0, len(sent), 40):
                        one.relays.send(other.key, server.url, sent[at : at + 40])
                    await other.until(lambda other=other: len(other.datagrams) == 400)
                    assert other.datagrams == sent
                assert not alice.relays.counters

    runs_on(loop, story())


def test_peers_meet_again_after_the_relay_was_started_anew() -> None:
    async def story() -> None:
        server, alice, bob = Server(), Peer(ALICE), Peer(BOB)
        with server.sock:
            async with connected(alice, bob, url=server.url):
                async with server.running():
                    await meet(alice, bob)
                for peer in (alice, bob):
                    await peer.until(lambda peer=peer: not peer.paths)
                async with server.running():
                    await meet(alice, bob)
                    alice.relays.send(BOB, server.url, [b"again"])
                    await bob.until(lambda: bob.datagrams == [b"again"])

    runs_on("asyncio", story())
