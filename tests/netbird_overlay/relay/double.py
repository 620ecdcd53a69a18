"""A scripted relay for tests of clients: the library's own WebSocket server, answers as NetBird's relay gives them.

It carries out the protocol by default; a test changes single answers, and reads what each client sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from netbird_wire.relay import (
    Auth,
    AuthResponse,
    Close,
    Message,
    PeersOffline,
    PeersOnline,
    Subscribe,
    Transport,
    Unsubscribe,
    decode,
    encode,
)

SECRET = "any-relay-secret"


@dataclass
class Client:
    """One connected client and the messages that it sent, raw."""

    connection: ServerConnection
    received: list[bytes] = field(default_factory=list)
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    id: bytes = b""
    subscriptions: set[bytes] = field(default_factory=set)

    @property
    def messages(self) -> list[Message]:
        return [decode(data) for data in self.received]


@dataclass
class Relay:
    """The double. `changed` is set at every message and every end of a connection.

    Attributes:
        instance_url: the answer to Auth; "" for the double's own address.
        early: raw messages sent before the answer to Auth.
        judge: decides on an Auth; a client that it refuses is closed without an answer, as NetBird's relay does.
        mute: True to answer nothing at all.
    """

    port: int = 0
    scheme: str = "rel"
    instance_url: str = ""
    early: list[bytes] = field(default_factory=list)
    judge: Callable[[Auth], bool] = lambda auth: auth.token.is_valid(SECRET, 0.0)
    mute: bool = False
    clients: list[Client] = field(default_factory=list)
    online: dict[bytes, Client] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for something that a client's message or end makes true."""
        async with self.changed:
            await self.changed.wait_for(predicate)

    async def drop_all(self) -> None:
        """Cut every connection, as a relay that is killed does."""
        for client in list(self.clients):
            client.connection.transport.abort()

    async def serve(self, connection: ServerConnection) -> None:
        request = connection.request
        assert request is not None
        client = Client(connection, path=request.path, headers=dict(request.headers.raw_items()))
        self.clients.append(client)
        try:
            async for data in connection:
                assert isinstance(data, bytes)
                client.received.append(data)
                if not self.mute:
                    await self._answer(client, decode(data))
                async with self.changed:
                    self.changed.notify_all()
        except ConnectionClosed:
            pass
        finally:
            self.clients.remove(client)
            if self.online.get(client.id) is client:
                del self.online[client.id]
                await self._tell(client.id, PeersOffline((client.id,)))
            async with self.changed:
                self.changed.notify_all()

    async def _answer(self, client: Client, message: Message) -> None:
        match message:
            case Auth(peer) as auth:
                if not self.judge(auth):
                    await client.connection.close()
                    return
                client.id = peer
                older, self.online[peer] = self.online.get(peer), client
                if older is not None:
                    await older.connection.close()
                for data in self.early:
                    await client.connection.send(data)
                await client.connection.send(encode(AuthResponse(self.instance_url or self.url)))
                await self._tell(peer, PeersOnline((peer,)))
            case Subscribe(peers):
                client.subscriptions.update(peers)
                if present := tuple(peer for peer in peers if peer in self.online):
                    await client.connection.send(encode(PeersOnline(present)))
            case Unsubscribe(peers):
                client.subscriptions.difference_update(peers)
            case Transport(peer, payload):
                if (receiver := self.online.get(peer)) is not None:
                    await receiver.connection.send(encode(Transport(client.id, payload)))
            case Close():
                await client.connection.close()

    async def _tell(self, peer: bytes, message: PeersOnline | PeersOffline) -> None:
        for other in list(self.online.values()):
            if peer in other.subscriptions:
                await other.connection.send(encode(message))


@asynccontextmanager
async def scripted_relay(*, tls: ssl.SSLContext | None = None, **script: object) -> AsyncIterator[Relay]:
    """Serve the double on loopback."""
    relay = Relay(scheme="rel" if tls is None else "rels", **script)  # type: ignore[arg-type]
    async with serve(relay.serve, "127.0.0.1", relay.port, ssl=tls, compression=None, max_size=8820) as server:
        relay.port = next(iter(server.sockets)).getsockname()[1]
        yield relay
