"""Nodes with paths in one process on loopback, over a real signal server and relays that stop and restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import ifaddr
import pytest

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Engine
from netbird_overlay.members import Member
from netbird_overlay.node import Node
from netbird_overlay.paths.paths import Paths
from netbird_overlay.paths.servers import PathServers, RemotePeer
from netbird_overlay.signal.client import SignalTarget
from netbird_overlay.signal.messages import Message, seal
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in
from netbird_relay.conversation import Identity
from netbird_relay.server import RelayServer
from netbird_signal.alone import Alone, serve_alone
from netbird_wire.backoff import Backoff
from netbird_wire.envelope import format_key, public_key
from netbird_wire.relay_tokens import RelayToken, relay_token
from netbird_wire.signalexchange_pb2_grpc import SignalExchangeStub
from tests.netbird_overlay.relay.double import SECRET, Relay, scripted_relay

SECONDS = 20
"""Maximum time of any step of a test."""
PORT = 80


def token(seconds: float = 3600) -> RelayToken:
    return relay_token(SECRET, int(time.time() + seconds))


def quick() -> Backoff:
    """Waits of clients whose server comes back at once."""
    return Backoff(0.05, 0.2, factor=1.5)


@dataclass(eq=False)
class Resident:
    """A node with its paths.

    `changed` is set at each change of a path and each handshake.
    """

    node: Node
    paths: Paths
    private_key: bytes
    address: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    in_use: set[bytes] = field(default_factory=set)

    @property
    def key(self) -> bytes:
        return self.node.public_key

    def kind(self, other: Resident) -> str:
        return self.paths.state(other.key).kind

    async def until(self, predicate: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Wait for something that a change of a path or a handshake makes true."""
        async with asyncio.timeout(seconds):
            while not predicate():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):  # parts below report no change to us
                    await asyncio.wait_for(self.changed.wait(), 0.05)

    async def until_home(self) -> None:
        """Wait for signal and the home relay."""
        await self.until(lambda: self.paths.signal_connected and bool(self.paths.home_relay))


@asynccontextmanager
async def resident(
    address: str,
    *,
    private_key: bytes | None = None,
    ice: bool = False,
    version: str = "0.60.0",
    adapters: Callable[[], Iterable[ifaddr.Adapter]] = ifaddr.get_adapters,
    on_change: Callable[[bytes], None] = lambda _key: None,
    host: str = LOOPBACK,
) -> AsyncIterator[Resident]:
    """A node at an overlay address, without peers and servers."""
    own_key = private_key or secrets.token_bytes(32)
    engine = Engine(own_key)
    engine.set_addresses([address])

    def shaken(key: bytes) -> None:
        node.on_handshake(key)
        paths.on_handshake(key)
        home.changed.set()

    def changed(key: bytes) -> None:
        home.changed.set()
        on_change(key)

    driver = Driver(engine, open_socket(host, 0), on_handshake=shaken)
    node = Node(driver, [address])
    paths = Paths(
        driver,
        own_key,
        version=version,
        allow_ice=ice,
        loopback=True,
        in_use=lambda key: key in home.in_use,
        on_change=changed,
        adapters=adapters,
        relay_backoff=quick(),
        signal_backoff=quick(),
    )
    node.wake = paths.wake
    allow_everything_in(node)
    home = Resident(node, paths, own_key, address)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(paths.run())
            yield home
            running.cancel()
    finally:
        node.close()
        await driver.supervise()


@dataclass
class RealRelay:
    """Our own relay on loopback."""

    port: int
    server: RelayServer

    @property
    def url(self) -> str:
        return f"rel://127.0.0.1:{self.port}"


@asynccontextmanager
async def real_relay(port: int = 0) -> AsyncIterator[RealRelay]:
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        number = listener.getsockname()[1]
        relay = RealRelay(number, RelayServer(Identity(SECRET, f"rel://127.0.0.1:{number}")))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(relay.server.run([listener]))
            try:
                yield relay
            finally:
                running.cancel()


class Servers:
    """A signal server and relays, each at a port that it keeps when it is restarted.

    `scripted` has the relays that are doubles, whose answers a test can change.
    """

    def __init__(self) -> None:
        self.signal_port = 0
        self.relays: dict[str, Relay | RealRelay] = {}
        self._parts: dict[str, AsyncExitStack] = {}

    @property
    def scripted(self) -> dict[str, Relay]:
        return {name: relay for name, relay in self.relays.items() if isinstance(relay, Relay)}

    async def start_signal(self) -> None:
        stack = self._parts["signal"] = AsyncExitStack()
        running = await stack.enter_async_context(serve_alone(Alone(f"127.0.0.1:{self.signal_port}")))
        self.signal_port = running.port

    async def start_relay(self, name: str = "relay", *, scripted: bool = False) -> None:
        stack = self._parts[name] = AsyncExitStack()
        port = self.relays[name].port if name in self.relays else 0
        self.relays[name] = await stack.enter_async_context(scripted_relay(port=port) if scripted else real_relay(port))

    async def stop(self, name: str) -> None:
        if name in self.scripted:
            await self.scripted[name].drop_all()
        await self._parts.pop(name).aclose()

    async def close(self) -> None:
        for name in list(self._parts):
            await self.stop(name)

    def configuration(self, relays: Sequence[str] = ("relay",), *, access: RelayToken | None = None) -> PathServers:
        return PathServers(
            signal=SignalTarget(f"127.0.0.1:{self.signal_port}", tls=False),
            relays=tuple(self.relays[name].url for name in relays),
            relay_token=access or token(),
            stuns=(),
        )


async def say(group: Servers, sender: Resident, receiver: bytes, *messages: Message) -> None:
    """Send messages in the name of a resident, past its own links."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{group.signal_port}") as channel:
        for message in messages:
            await SignalExchangeStub(channel).Send(seal(message, sender.private_key, sender.key, receiver), timeout=10)


@asynccontextmanager
async def servers(*relays: str, scripted: bool = False) -> AsyncIterator[Servers]:
    group = Servers()
    try:
        await group.start_signal()
        for name in relays or ("relay",):
            await group.start_relay(name, scripted=scripted)
        yield group
    finally:
        await group.close()


def can_bind(host: str) -> bool:
    """True if this host has that address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def require_ipv6() -> None:
    """Fail in CI, and skip elsewhere with the reason, on a host without IPv6."""
    if not can_bind("::1"):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs IPv6 on loopback")


def ordered_keys() -> tuple[bytes, bytes]:
    """Two private keys; the second is the controller's."""
    first, second = sorted((secrets.token_bytes(32) for _ in range(2)), key=lambda key: format_key(public_key(key)))
    return first, second


@contextlib.contextmanager
def reported() -> Iterator[list[dict[str, Any]]]:
    """Collect what is reported to the loop's exception handler."""
    loop = asyncio.get_running_loop()
    contexts: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: contexts.append(context))
    try:
        yield contexts
    finally:
        loop.set_exception_handler(before)


def acquaint(*residents: Resident, lazy: bool = False) -> None:
    """Make all residents each other's peers."""
    for own in residents:
        others = [other for other in residents if other is not own]
        own.node.set_members([Member(other.key, (other.address,)) for other in others], {})
        own.paths.set_peers([RemotePeer(other.key, "0.60.0", lazy) for other in others])


async def exchange(client: Resident, server: Resident, accepting: Accepting, data: bytes = b"ping") -> None:
    """Open a connection, and check that bytes pass both ways."""
    transport, protocol = await client.node.dial(Recorder, server.address, PORT, timeout=15)
    assert isinstance(protocol, Recorder)
    transport.write(data)
    far = await accepting.next()
    assert await far.has(len(data)) == data
    far.transport.write(data[::-1])
    assert await protocol.has(len(data)) == data[::-1]
    transport.abort()


@asynccontextmanager
async def couple(
    group: Servers, *, ice: bool = False, relays: Sequence[Sequence[str]] = (("relay",), ("relay",)), lazy: bool = False
) -> AsyncIterator[tuple[Resident, Resident, Accepting]]:
    """Two residents that reached each other once. The second accepts connections."""
    async with resident("100.64.0.1", ice=ice) as a, resident("100.64.0.2", ice=ice) as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home, own in zip((a, b), relays, strict=True):
            home.paths.configure(group.configuration(own))
        acquaint(a, b, lazy=lazy)
        await exchange(a, b, accepting)
        kind = "ice" if ice else "relay"
        await a.until(lambda: a.kind(b) == kind)
        await b.until(lambda: b.kind(a) == kind)
        yield a, b, accepting
