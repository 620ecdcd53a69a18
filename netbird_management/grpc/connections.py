"""The proxies connected to this process, and the mappings that management sent to each of them."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import grpc

from netbird_management.compute.mapping import BuiltMapping
from netbird_management.grpc.errors import Refused
from netbird_management.model.ids import AccountId, ProxyId, ServiceId
from netbird_management.model.services import Service
from netbird_management.model.snapshot import Change
from netbird_management.operations.proxies import Registration
from netbird_management.operations.proxy_tokens import ProxyToken

# Maximum backlog of a proxy, in messages and in bytes; beyond it the stream ends, and the proxy reconnects for a
# snapshot.
QUEUE_MESSAGES: Final = 100
QUEUE_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class ProxyCall:
    """The origin of a proxy's call: gRPC's name of the connection, the client's address, and whether the call names its
    proxy. Each is empty where it is not known."""

    connection: str = ""
    address: str = ""
    names_proxy: bool = False


NO_CALL: Final = ProxyCall()


class Connection:
    """The mapping stream of a proxy.

    Attributes:
        sent: the mappings sent to the proxy, by service; None for a service that management withholds and whose removal
            it sent.
        withheld: the reason for each withheld service.
        snapshotted: True once `sent` contains the snapshot. Earlier changes need no message, as the snapshot contains
            them.
        refusal: the status that the stream ends with; None while it lasts, and for an end without an error.
    """

    def __init__(
        self,
        registration: Registration,
        token: ProxyToken,
        token_hash: str,
        count: Callable[[str], object] = lambda _name: None,
        *,
        caller: ProxyCall | None = None,
    ) -> None:
        """`caller` is the call that opened the stream."""
        self.caller = caller or NO_CALL
        self._count = count
        self.registration = registration
        self.token = token
        self.token_hash = token_hash
        self.sent: dict[ServiceId, BuiltMapping | None] = {}
        self.withheld: dict[ServiceId, str] = {}
        self.snapshotted = False
        self.refusal: Refused | None = None
        self._ended = asyncio.Event()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MESSAGES)
        self._queued_bytes = 0

    @property
    def proxy_id(self) -> ProxyId:
        return self.registration.proxy_id

    def serves(self, service: Service) -> bool:
        """True if the service is served, in this proxy's cluster, and of an account that its token permits."""
        return (
            service.served and service.proxy_cluster == self.registration.cluster and self.may_see(service.account_id)
        )

    def may_see(self, account_id: AccountId) -> bool:
        return self.token.account_id is None or self.token.account_id == account_id

    def is_concerned(self, change: Change) -> bool:
        """True if the proxy supports revalidations and revocations, and may have state of the account."""
        if self.registration.capabilities.claims is None:
            return False
        return any(
            account is not None and account.index.of_cluster(self.registration.cluster)
            for account in (change.before, change.after)
        )

    def put(self, message: bytes) -> None:
        """Queues a serialized message. Never waits: the stream of a proxy that reads too slowly ends instead."""
        if self._queue.full() or self._queued_bytes + len(message) > QUEUE_BYTES:
            self._count("proxies_too_far_behind")
            self.end(Refused(grpc.StatusCode.ABORTED, "the proxy reads too slowly: connect again for a snapshot"))
            return
        self._queued_bytes += len(message)
        self._queue.put_nowait(message)

    async def next(self) -> bytes:
        message = await self._queue.get()
        self._queued_bytes -= len(message)
        return message

    def end(self, refusal: Refused | None) -> None:
        """Ends the stream with a status, or without an error for None. Only the first call has an effect."""
        if not self._ended.is_set():
            self.refusal = refusal
            self._ended.set()

    async def ended(self) -> None:
        await self._ended.wait()


class Connections:
    """The live connections by proxy id. Belongs to one event loop."""

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

    def of_unnamed(self, call: ProxyCall, token_id: str, service_id: ServiceId) -> list[Connection]:
        """The connections of the proxy that reports about a service without its id, as NetBird's proxies do: those that
        have the service, without the proxies that name themselves, unless all do; of several, those of the same gRPC
        connection, else those of the same address. Replicas that cannot be told apart, as behind a proxy of their own,
        are all returned."""
        having = [connection for connection in self.of_token(token_id) if service_id in connection.sent]
        candidates = [connection for connection in having if not connection.caller.names_proxy] or having
        for name in ("connection", "address"):
            origin = getattr(call, name)
            same = [connection for connection in candidates if origin and getattr(connection.caller, name) == origin]
            if same:
                return same
        return candidates

    def known_token(self, token_hash: str) -> ProxyToken | None:
        """The token of a live connection, which each heartbeat reads again: most calls need no query of the store."""
        for connection in self._live.values():
            if connection.token_hash == token_hash:
                return connection.token
        return None

    def join(self, connection: Connection) -> None:
        """Adds the connection, and ends the proxy's earlier one."""
        self._conversations += 1
        self._quiet.clear()
        earlier = self._live.get(connection.proxy_id)
        self._live[connection.proxy_id] = connection
        if earlier is not None:
            earlier.end(Refused(grpc.StatusCode.ABORTED, "the proxy opened a newer stream"))

    def leave(self, connection: Connection) -> bool:
        """Removes the connection. False if the proxy has a newer one, and so must not be marked disconnected."""
        if self._live.get(connection.proxy_id) is not connection:
            return False
        del self._live[connection.proxy_id]
        return True

    def cleaned_up(self) -> None:
        """Reports that a connection that joined has finished its cleanup."""
        self._conversations -= 1
        if not self._conversations:
            self._quiet.set()

    async def end_all(self, refusal: Refused, timeout: float) -> None:
        """Ends every connection, and waits at most `timeout` seconds for their cleanup."""
        for connection in self:
            connection.end(refusal)
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            return
