"""Clients of a relay for tests: the library's own WebSocket client, with messages as agents of NetBird send them."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from netbird_host.sources import Network
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.server import RelayServer
from netbird_wire.relay import (
    HEALTH_CHECK_MESSAGE,
    Auth,
    AuthResponse,
    Message,
    PeersOnline,
    Subscribe,
    Transport,
    decode,
    encode,
    peer_id,
)
from netbird_wire.relay_tokens import relay_token

SECRET = "a secret of sixteen characters"
URL = "rel://relay.example:8080"
REFUSED = (OSError, WebSocketException)
"""The notice to a client whose connection was closed before the handshake."""
TOKEN = relay_token(SECRET, 4_000_000_000)


def key_id(number: int) -> bytes:
    return peer_id(number.to_bytes(32, "big"))


class Agent:
    """One peer that is connected. `receive` answers health checks, as agents do."""

    def __init__(self, connection: ClientConnection, number: int) -> None:
        self.connection = connection
        self.id = key_id(number)

    async def send(self, *messages: Message) -> None:
        for message in messages:
            await self.connection.send(encode(message))

    async def receive(self) -> Message:
        while True:
            data = await self.connection.recv()
            assert isinstance(data, bytes)
            if data != HEALTH_CHECK_MESSAGE:
                return decode(data)
            await self.connection.send(data)

    async def closed(self) -> None:
        """Wait until the relay has closed the connection."""
        with suppress(ConnectionClosed):
            while True:
                await self.connection.recv()

    async def meet(self, other: Agent) -> None:
        await self.send(Subscribe((other.id,)))
        assert await self.receive() == PeersOnline((other.id,))

    async def datagram(self) -> tuple[bytes, bytes]:
        message = await self.receive()
        assert isinstance(message, Transport), message
        return message.peer, message.payload


class Watched(Counter[str]):
    """Counters whose changes can be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def __setitem__(self, name: str, count: int) -> None:
        super().__setitem__(name, count)
        self.changed.set()

    async def reach(self, name: str, count: int = 1) -> None:
        while self[name] < count:
            self.changed.clear()
            await self.changed.wait()


class Served:
    """A relay on loopback, and the means to connect to it."""

    def __init__(self, server: RelayServer, port: int) -> None:
        self.server = server
        self.port = port
        self.counters = server.hub.counters = Watched()

    def dial(self, path: str = "/relay", **options: object) -> connect:
        return connect(
            f"ws://127.0.0.1:{self.port}{path}",
            compression=None,
            ping_interval=None,
            proxy=None,
            **options,  # type: ignore[arg-type]
        )

    @asynccontextmanager
    async def agent(self, number: int, auth: Message | None = None) -> AsyncIterator[Agent]:
        connection = await self.dial()
        try:
            agent = Agent(connection, number)
            await agent.send(auth or Auth(agent.id, TOKEN))
            assert await agent.receive() == AuthResponse(URL)
            yield agent
        finally:
            connection.transport.abort()  # the agent may have stopped reading, and would wait for the answer to a close
            await connection.wait_closed()


def listener() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def relay(
    limits: Limits | None = None, trusted: Sequence[Network] = (), *, seconds: float = 20
) -> AsyncIterator[Served]:
    sock = listener()
    with sock:
        server = RelayServer(Identity(SECRET, URL), limits, trusted)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run([sock]))
            try:
                async with asyncio.timeout(seconds):
                    await server.serving.wait()
                    yield Served(server, sock.getsockname()[1])
            finally:
                server.stop()
