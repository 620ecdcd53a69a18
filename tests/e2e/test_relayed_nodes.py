"""Two nodes whose only path is our own relay, found through our own signal server: downloads, across restarts."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import uvloop

from netbird_overlay.paths.servers import PathServers
from netbird_overlay.signal.client import SignalTarget
from netbird_overlay.testing import Accepting, Recorder
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.thread import RelayThread
from netbird_signal.alone import Alone, serve_alone
from tests.netbird_overlay.paths.house import PORT, Resident, acquaint, exchange, resident, token
from tests.netbird_overlay.relay.double import SECRET

DATA = secrets.token_bytes(4 << 20)


class Relay:
    """Our relay in its thread, on a port that it keeps across restarts."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.url = f"rel://127.0.0.1:{self.sock.getsockname()[1]}"
        self._limits = limits or Limits()
        self._running = AsyncExitStack()

    async def start(self) -> None:
        thread = RelayThread(Identity(SECRET, self.url), self._limits)
        await self._running.enter_async_context(thread.running([self.sock]))

    async def stop(self) -> None:
        await self._running.aclose()


@asynccontextmanager
async def network(*relays: Relay) -> AsyncIterator[tuple[Resident, Resident, Accepting]]:
    """Two nodes, the second of which accepts connections. The first and the last relay are their homes."""
    async with AsyncExitStack() as stack:
        for relay in relays:
            stack.enter_context(relay.sock)
            stack.push_async_callback(relay.stop)
            await relay.start()
        signal = await stack.enter_async_context(serve_alone(Alone("127.0.0.1:0")))
        homes = [await stack.enter_async_context(resident(f"100.64.0.{number}")) for number in (1, 2)]
        for home, relay in zip(homes, (relays[0], relays[-1]), strict=True):
            home.paths.configure(
                PathServers(SignalTarget(f"127.0.0.1:{signal.port}", tls=False), (relay.url,), token(), ())
            )
        acquaint(*homes)
        accepting = Accepting()
        homes[1].node.listen(PORT, accepting)
        await exchange(*homes, accepting)
        yield homes[0], homes[1], accepting


async def download(a: Resident, b: Resident, accepting: Accepting, relay: Relay | None = None) -> None:
    """Download from b; if a relay is given, it is stopped and started in the middle."""
    transport, protocol = await a.node.dial(Recorder, b.address, PORT, timeout=15)
    assert isinstance(protocol, Recorder)
    transport.write(b"?")
    far = await accepting.next()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(far.write_slowly(DATA))
        if relay is not None:
            await protocol.has(len(DATA) // 8)
            await relay.stop()
            await relay.start()
        assert await protocol.has(len(DATA)) == DATA
    transport.abort()


def run(factory: object, story: object) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
        runner.run(story)  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_download_through_our_relay_only_is_whole(factory: object) -> None:
    async def story() -> None:
        relay = Relay()
        async with asyncio.timeout(50), network(relay) as (a, b, accepting):
            await download(a, b, accepting)
            assert (a.kind(b), b.kind(a)) == ("relay", "relay")
            assert a.paths.state(b.key).relay == relay.url

    run(factory, story())


def test_a_download_goes_on_after_the_relay_was_started_anew() -> None:
    async def story() -> None:
        relay = Relay()
        async with asyncio.timeout(55), network(relay) as (a, b, accepting):
            await download(a, b, accepting, relay)

    run(asyncio.new_event_loop, story())


def test_nodes_with_different_home_relays_meet_at_one_of_them() -> None:
    async def story() -> None:
        first, second = Relay(), Relay()
        async with asyncio.timeout(50), network(first, second) as (a, b, accepting):
            await download(a, b, accepting)
            assert {a.paths.home_relay, b.paths.home_relay} == {first.url, second.url}
            assert a.paths.state(b.key).relay == b.paths.state(a.key).relay

    run(asyncio.new_event_loop, story())


def test_a_download_through_a_narrow_relay_is_whole() -> None:
    """A relay that limits each sender reads slowly, and TCP inside the tunnel adapts."""

    async def story() -> None:
        relay = Relay(Limits(bytes_per_second=2_000_000))
        async with asyncio.timeout(55), network(relay) as (a, b, accepting):
            await download(a, b, accepting)

    run(asyncio.new_event_loop, story())
