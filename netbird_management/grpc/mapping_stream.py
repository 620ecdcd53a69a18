"""The mapping stream of a proxy, from its first message to its end."""

import asyncio
import logging
import uuid
from contextlib import AbstractContextManager
from typing import Any, Final

import grpc
import grpc.aio

from netbird_host.buckets import Places
from netbird_management.grpc.connections import Connection, Connections
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import REQUEST_SECONDS, AuthenticatedProxy
from netbird_management.grpc.mappings import Mappings
from netbird_management.model.domains import fold_address
from netbird_management.model.ids import AccountId, ProxyId
from netbird_management.model.services import Capabilities
from netbird_management.operations.proxies import (
    Registration,
    address_is_free,
    disconnect_proxy,
    heartbeat_proxy,
    is_proved_address,
    proxy_id_is_free,
    register_proxy,
    room_for_proxy,
)
from netbird_management.operations.proxy_tokens import get_proxy_token, note_token_used
from netbird_management.store.state import State
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import (
    GetMappingUpdateRequest,
    ProxyCapabilities,
    SyncMappingsInit,
    SyncMappingsRequest,
)

HEARTBEAT_SECONDS: Final = 15.0
"""Time between two heartbeats: each stores that the proxy is alive and reads its token again. A stream with a revoked
token lasts at most this long."""
STREAMS_OF_A_TOKEN: Final = 2_000
"""Maximum number of streams with a token: two for each permitted proxy, as the earlier stream of a reconnecting proxy
may not have ended."""
ACK_SECONDS: Final = 150.0
"""Maximum time until a proxy acknowledges a batch of its snapshot; on expiry DEADLINE_EXCEEDED."""
EXTENSIONS: Final = (
    Extension.ACCESS_LOG_BATCH,
    Extension.CLIENT_ADDRESS,
    Extension.PEER_KEY,
    Extension.PLUGIN_SETTINGS,
    Extension.PRINCIPAL,
    Extension.PROXY_ID,
    Extension.REQUIRED_GROUPS,
    Extension.REVALIDATIONS,
    Extension.REVOCATIONS,
    Extension.WIREGUARD_ENDPOINT,
)
_log = logging.getLogger(__name__)


class MappingStreams:
    """Serves mapping streams. `heartbeat` is the time between heartbeats, and `patience` the maximum time until a
    stream's first message, both in seconds."""

    def __init__(
        self,
        state: State,
        connections: Connections,
        mappings: Mappings,
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        patience: float = REQUEST_SECONDS,
    ) -> None:
        self._state = state
        self._connections = connections
        self._mappings = mappings
        self._heartbeat_seconds = heartbeat
        self._patience = patience
        self._streams = Places(STREAMS_OF_A_TOKEN)

    async def serve(self, caller: AuthenticatedProxy, context: Any) -> None:
        """Serves a stream in both directions to its end. Raises `Refused`, unless the proxy closed it."""
        with self._place(caller):
            try:
                async with asyncio.timeout(self._patience):
                    first = await _read(context)
            except TimeoutError as error:
                raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "no first message arrived in time") from error
            if first is None or first.WhichOneof("msg") != "init":
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "first message must be init")
            await self._serve(await self._introduced(caller, first.init), _Acknowledged(context))

    async def serve_one_way(self, caller: AuthenticatedProxy, request: GetMappingUpdateRequest, context: Any) -> None:
        """Serves `GetMappingUpdate`, a stream without acknowledgements. Raises `Refused`."""
        with self._place(caller):
            await self._serve(await self._introduced(caller, request), _OneWay(context))

    def _place(self, caller: AuthenticatedProxy) -> AbstractContextManager[None]:
        return self._streams.place(caller.token.id, refusal=self._too_many)

    def _too_many(self) -> Refused:
        self._state.count("proxy_streams_refused")
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams use this token")

    async def _serve(self, connection: Connection, channel: "_Acknowledged | _OneWay") -> None:
        self._connections.join(connection)
        try:
            await register_proxy(self._state, connection.registration)
            async with asyncio.TaskGroup() as tasks:
                children = [
                    tasks.create_task(self._converse(connection, channel, tasks)),
                    tasks.create_task(self._heartbeats(connection)),
                ]
                try:
                    await connection.ended()
                finally:
                    for child in children:
                        child.cancel()
        except* Refused as refusals:
            connection.end(_first(refusals))
        finally:
            try:
                if self._connections.leave(connection):
                    # gRPC may cancel the call while this runs: it reports a broken connection twice.
                    await self._state.to_the_end(disconnect_proxy(self._state, connection.registration))
            finally:
                self._connections.cleaned_up()
        if connection.refusal is not None:
            raise connection.refusal

    async def _introduced(
        self, caller: AuthenticatedProxy, init: SyncMappingsInit | GetMappingUpdateRequest
    ) -> Connection:
        if not init.proxy_id or len(init.proxy_id) > 255 or not init.proxy_id.isprintable():
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "proxy_id is required")
        try:
            address = fold_address(init.address)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "proxy address is invalid") from error
        account_id, proxy_id = caller.token.account_id, ProxyId(init.proxy_id)
        if account_id is not None:
            if not await address_is_free(self._state, address, account_id):
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"cluster address {address} is already in use")
            self._check_proved(address, account_id)
        if not await proxy_id_is_free(self._state, proxy_id, account_id):
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, "this proxy_id is in use with a token of another account")
        if not await room_for_proxy(self._state, proxy_id, caller.token.id):
            self._state.count("proxies_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many proxies use this token")
        registration = Registration(
            proxy_id=proxy_id,
            session_id=str(uuid.uuid4()),
            cluster=address,
            ip_address=caller.address,
            account_id=account_id,
            token_id=caller.token.id,
            capabilities=_capabilities(init),
        )
        return Connection(registration, caller.token, caller.token_hash, self._state.count, caller=caller.call)

    def _check_proved(self, address: str, account_id: AccountId) -> None:
        """Raises `Refused` unless the account has proved its ownership of its proxies' cluster address."""
        if not is_proved_address(self._state, address, account_id):
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"cluster address {address} is not at or below a validated domain of this account: "
                "add it as a custom domain and publish the domain's validation record",
            )

    async def _converse(
        self, connection: Connection, channel: "_Acknowledged | _OneWay", tasks: asyncio.TaskGroup
    ) -> None:
        try:
            await self._write_all(connection, channel, tasks)
        except grpc.aio.InternalError:  # gRPC's error for a connection that broke meanwhile
            connection.end(None)

    async def _write_all(
        self, connection: Connection, channel: "_Acknowledged | _OneWay", tasks: asyncio.TaskGroup
    ) -> None:
        """Sends the snapshot, and then the queued changes until the stream ends."""
        for message in self._mappings.snapshot_messages(connection, EXTENSIONS):
            await channel.write(message)
            await channel.acknowledged()
        _log.info(
            "proxy.connected", extra={"proxy_id": connection.proxy_id, "cluster": connection.registration.cluster}
        )
        reader = tasks.create_task(channel.read_to_the_end(connection))
        try:
            while True:
                await channel.write(await connection.next())
        finally:
            reader.cancel()

    async def _heartbeats(self, connection: Connection) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            try:
                token = await get_proxy_token(self._state, connection.token.id)
                if token is None or not token.valid:
                    raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the proxy's token is no longer valid")
                connection.token = token
                if token.account_id is not None:
                    self._check_proved(connection.registration.cluster, token.account_id)
                await note_token_used(self._state, token)
                if not await heartbeat_proxy(self._state, connection.registration):
                    # The row was deleted. No newer connection has replaced it, as that would have ended this one.
                    await register_proxy(self._state, connection.registration)
            except Refused:
                raise
            except Exception:
                _log.exception("proxy.heartbeat.failed", extra={"proxy_id": connection.proxy_id})


async def _read(context: Any) -> SyncMappingsRequest | None:
    message = await context.read()
    return None if message is grpc.aio.EOF else message


class _Acknowledged:
    """A stream in both directions: the proxy acknowledges each batch of the snapshot before management sends the
    next."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def write(self, message: bytes) -> None:
        await self._context.write(message)

    async def acknowledged(self) -> None:
        try:
            async with asyncio.timeout(ACK_SECONDS):
                message = await _read(self._context)
        except TimeoutError as error:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, "a batch of the snapshot was not acknowledged in time"
            ) from error
        if message is None or message.WhichOneof("msg") != "ack":
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "msg must be an ack after each batch of the snapshot")

    async def read_to_the_end(self, connection: Connection) -> None:
        """Ignores acknowledgements after the snapshot. When the proxy stops sending, the stream ends."""
        while await _read(self._context) is not None:
            pass
        connection.end(None)


class _OneWay:
    """A stream to a proxy that supports one direction only. gRPC cancels the call when the proxy leaves."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def write(self, message: bytes) -> None:
        await self._context.write(message)  # the messages of both kinds of streams have the same encoding

    async def acknowledged(self) -> None:
        """Returns at once: only gRPC's flow control limits the rate."""

    async def read_to_the_end(self, connection: Connection) -> None:
        await connection.ended()


def _first(group: BaseExceptionGroup[Refused]) -> Refused:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, Refused)  # noqa: S101 - the type of the group permits nothing else
    return leaf


def _capabilities(init: SyncMappingsInit | GetMappingUpdateRequest) -> Capabilities:
    given: ProxyCapabilities = init.capabilities

    def reported(has: bool, value: bool) -> bool | None:
        return value if has else None

    return Capabilities(
        supports_custom_ports=reported(given.HasField("supports_custom_ports"), given.supports_custom_ports),
        require_subdomain=reported(given.HasField("require_subdomain"), given.require_subdomain),
        supports_crowdsec=reported(given.HasField("supports_crowdsec"), given.supports_crowdsec),
        private=reported(given.HasField("private"), given.private),
        supports_private_service=reported(given.HasField("supports_private_service"), given.supports_private_service),
        claims=frozenset(given.claims) or None,
    )
