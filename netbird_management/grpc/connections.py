"""The proxies that are connected to this process, and what each of them has been sent."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import grpc

from netbird_management.compute.mapping import BuiltMapping
from netbird_management.grpc.errors import Refused
from netbird_management.model.ids import AccountId, ProxyId, ServiceId
from netbird_management.model.services import Service
from netbird_management.model.snapshot import Change
from netbird_management.operations.proxies import Registration
from netbird_management.operations.proxy_tokens import ProxyToken

QUEUE_MESSAGES: Final = 100
QUEUE_BYTES: Final = 32 << 20
"""How far a proxy may fall behind, in messages and in bytes, before it has to start over from a snapshot."""


class Connection:
    """One proxy's mapping stream.

    `held` is what the proxy has by what it was sent: the built mapping, or `None` for a service that it must not have
    and was told to remove. `withheld` says why for each of those.
    """

    def __init__(
        self,
        registration: Registration,
        token: ProxyToken,
        token_hash: str,
        count: Callable[[str], object] = lambda _name: None,
    ) -> None:
        self._count = count
        self.registration = registration
        self.token = token
        self.token_hash = token_hash
        self.held: dict[ServiceId, BuiltMapping | None] = {}
        self.withheld: dict[ServiceId, str] = {}
        self.snapshotted = False
        """Whether `held` counts: before that, changes need not be told, as the snapshot will hold them."""
        self.why: Refused | None = None
        self._ended = asyncio.Event()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MESSAGES)
        self._queued_bytes = 0

    @property
    def proxy_id(self) -> ProxyId:
        return self.registration.proxy_id

    def serves(self, service: Service) -> bool:
        """Whether the service is for this proxy's cluster and account, if it may have it."""
        return (
            service.served and service.proxy_cluster == self.registration.cluster and self.may_see(service.account_id)
        )

    def may_see(self, account_id: AccountId) -> bool:
        return self.token.account_id is None or self.token.account_id == account_id

    def is_concerned(self, change: Change) -> bool:
        """Whether it understands what is told beside mappings, and may have cached or opened something of the
        account."""
        if self.registration.capabilities.claims is None:
            return False
        return any(
            account is not None and account.index.of_cluster(self.registration.cluster)
            for account in (change.before, change.after)
        )

    def put(self, message: bytes) -> None:
        """A serialized message, to be sent after what was put before. Never waits: a proxy that reads too slowly loses
        its connection, and gets a snapshot when it comes back."""
        if self._queue.full() or self._queued_bytes + len(message) > QUEUE_BYTES:
            self._count("proxies_too_far_behind")
            self.end(Refused(grpc.StatusCode.ABORTED, "too far behind: connect again for a snapshot"))
            return
        self._queued_bytes += len(message)
        self._queue.put_nowait(message)

    async def next(self) -> bytes:
        message = await self._queue.get()
        self._queued_bytes -= len(message)
        return message

    def end(self, why: Refused | None) -> None:
        """Ends the stream: with this status, or well. The first word counts."""
        if not self._ended.is_set():
            self.why = why
            self._ended.set()

    async def ended(self) -> None:
        await self._ended.wait()


class Connections:
    """The live connections by the id of their proxy; belongs to one event loop."""

    def __init__(self) -> None:
        self._live: dict[ProxyId, Connection] = {}
        self._conversations = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def get(self, proxy_id: str) -> Connection | None:
        return self._live.get(ProxyId(proxy_id))

    def of_token(self, token_id: str) -> list[Connection]:
        return [connection for connection in self if connection.token.id == token_id]

    def known_token(self, token_hash: str) -> ProxyToken | None:
        """The token of a live connection: asked again at each heartbeat, so not each call needs the database."""
        for connection in self._live.values():
            if connection.token_hash == token_hash:
                return connection.token
        return None

    def join(self, connection: Connection) -> None:
        """Takes the proxy's place; its earlier connection ends."""
        self._conversations += 1
        self._quiet.clear()
        earlier = self._live.get(connection.proxy_id)
        self._live[connection.proxy_id] = connection
        if earlier is not None:
            earlier.end(Refused(grpc.StatusCode.ABORTED, "the proxy has connected anew"))

    def leave(self, connection: Connection) -> bool:
        """False if a newer connection has the place, and then nothing may be undone on the proxy's behalf."""
        if self._live.get(connection.proxy_id) is not connection:
            return False
        del self._live[connection.proxy_id]
        return True

    def over(self) -> None:
        """A conversation that joined has cleaned up."""
        self._conversations -= 1
        if not self._conversations:
            self._quiet.set()

    async def end_all(self, why: Refused, timeout: float) -> None:
        """Ends every connection and waits until each has cleaned up, for some seconds."""
        for connection in self:
            connection.end(why)
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            return
