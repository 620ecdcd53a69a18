"""The stream of mappings from management, connected again whenever it ends.

The stream connects, introduces the proxy, receives the snapshot in batches, acknowledges each, and receives changes.
After any end it waits and connects again. An attempt counts as connected at the *first message received*, not at a
successful send, so that a proxy whose token is refused waits longer each time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from netbird_host.tasks import start_owned
from netbird_proxy.api.errors import ManagementRefused, ManagementTimeout, management_error
from netbird_proxy.sources.management.channel import Loss, ManagementClient
from netbird_wire.backoff import Backoff
from netbird_wire.proxy_service_pb2 import (
    GetMappingUpdateRequest,
    GetMappingUpdateResponse,
    ProxyCapabilities,
    SyncMappingsAck,
    SyncMappingsInit,
    SyncMappingsRequest,
    SyncMappingsResponse,
)

log = structlog.get_logger("netbird_proxy.control")

REFUSED_FIRST, REFUSED_LONGEST = 0.8, 10.0
"""Seconds before the next attempt after a refusal by management: the first interval and the longest."""
FAILED_FIRST, FAILED_LONGEST = 0.2, 2.0
"""The same after other failures. A wait is between zero and twice the interval, so that proxies spread."""
FACTOR, SPREAD = 1.7, (0.0, 2.0)
BACK_SPREAD = 0.5
"""Seconds over which proxies spread their attempts when management is back."""

Update = SyncMappingsResponse | GetMappingUpdateResponse


class MappingSink(Protocol):
    """Receives the updates of a stream. One stream is open at a time; calls never overlap."""

    def stream_opened(self) -> None:
        """A new stream begins. Mappings that are not in its snapshot no longer exist."""

    async def apply(self, update: Update) -> None:
        """Apply one message, in order, and return when it is in force. Bad mappings raise no error but are reported."""

    def stream_lost(self) -> None: ...


class MappingStreamStalled(Exception):
    """A batch took longer than `batch_watchdog`. The batch and the stream were cancelled."""


class MappingStream:
    """Receives mappings on a client's channel and passes them to a sink."""

    def __init__(
        self,
        client: ManagementClient,
        capabilities: Callable[[], ProxyCapabilities],
        sink: MappingSink,
        *,
        pick: Callable[[float, float], float] = random.uniform,
        count: Callable[[str], object] = lambda _name: None,
    ) -> None:
        """Args:
        capabilities: called at each connect; all five of NetBird's fields are set, also when false.
        pick: chooses a wait between two bounds; tests pass a constant.
        count: adds one to a counter of the process.
        """
        self._client = client
        self._capabilities = capabilities
        self._sink = sink
        self._pick = pick
        self._count = count
        self._started = Timestamp()
        self._started.GetCurrentTime()
        self._sync_supported = True
        self._had_message = False

    async def run(self) -> None:
        """Keep the mapping stream open until cancelled."""
        refused = Backoff(REFUSED_FIRST, REFUSED_LONGEST, factor=FACTOR, spread=SPREAD, pick=self._pick)
        failed = Backoff(FAILED_FIRST, FAILED_LONGEST, factor=FACTOR, spread=SPREAD, pick=self._pick)
        while True:
            why = Loss.CLOSED
            try:
                try:
                    await self._attempt()
                finally:
                    self._lost()
                if not self._client.renewal.is_set():
                    self._note(why)
            except grpc.aio.AioRpcError as exc:
                self._note(why := _loss(exc))
                log.warning("management.stream.lost", why=why.value, code=exc.code().name, details=exc.details())
            except MappingStreamStalled as exc:
                self._note(why := Loss.STALLED)
                log.error("management.stream.stalled", reason=str(exc))
            if self._had_message or self._client.renewal.is_set():
                refused.reset()
                failed.reset()
            if self._client.renewal.is_set():
                self._client.renewal.clear()
            elif why in (Loss.REFUSED, Loss.STALLED):
                await asyncio.sleep(refused.next_wait())
            else:
                await self._pause(failed.next_wait())

    async def _pause(self, seconds: float) -> None:
        """Wait, but only until a management that was unreachable accepts connections again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await reconnected(self._client.channel)
                await asyncio.sleep(self._pick(0, BACK_SPREAD))

    def _note(self, why: Loss) -> None:
        self._client.loss = why
        self._count(f"management_{why}")

    def _lost(self) -> None:
        self._client.stream_lost()
        self._sink.stream_lost()

    async def _attempt(self) -> None:
        """One connection, to its end."""
        self._had_message = False
        self._sink.stream_opened()
        if self._sync_supported:
            try:
                await self._sync()
                return
            except grpc.aio.AioRpcError as exc:
                if exc.code() is not grpc.StatusCode.UNIMPLEMENTED or self._had_message:
                    raise
                self._sync_supported = False
                log.info("management.stream.legacy", reason="management does not support SyncMappings")
        await self._updates()

    async def _sync(self) -> None:
        call: Any = self._client.stub.SyncMappings(metadata=self._client.metadata())
        ending = _Ending(call)
        async with _cancelled_after(call):
            try:
                await call.write(SyncMappingsRequest(init=self._introduction(SyncMappingsInit)))
                while (update := await self._next(call)) is not None:
                    await self._take(update)
                    with suppress(asyncio.InvalidStateError):  # the stream has ended: the next read raises the reason
                        await call.write(SyncMappingsRequest(ack=SyncMappingsAck()))
            except grpc.aio.AioRpcError as exc:
                if (error := ending.sent(exc)) is not None:
                    raise error from exc
                log.info("management.stream.closed", reason="closed by server")

    async def _updates(self) -> None:
        call = self._client.stub.GetMappingUpdate(
            self._introduction(GetMappingUpdateRequest), metadata=self._client.metadata()
        )
        async with _cancelled_after(call):
            while (update := await self._next(call)) is not None:
                await self._take(update)

    def _introduction(self, message: Any) -> Any:
        return message(
            proxy_id=self._client.connection.proxy_id,
            version=self._client.connection.version,
            started_at=self._started,
            address=self._client.connection.domain,
            capabilities=self._capabilities(),
        )

    async def _next(self, call: Any) -> Any | None:
        """The next message; None at the stream's end, or when new tokens are needed."""
        # No group: a failed read is the stream's end, and must not arrive as an exception group.
        read = start_owned(call.read())
        renew = start_owned(self._client.renewal.wait())
        try:
            await asyncio.wait((read, renew), return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                return None
            update = read.result()
        finally:
            for task in (read, renew):
                if not task.done():
                    task.cancel()
            await asyncio.wait((read, renew))
        if update is grpc.aio.EOF:
            log.info("management.stream.closed", reason="closed by server")
            return None
        return update

    async def _take(self, update: Update) -> None:
        if not self._had_message:
            self._had_message = True
            self._client.stream_opened(frozenset(update.management_extensions))
            log.info("management.stream.connected", extensions=sorted(self._client.extensions))
        try:
            async with asyncio.timeout(self._client.connection.batch_watchdog):
                await self._sink.apply(update)
        except TimeoutError as exc:
            # The batch is cancelled and awaited before the next attempt, so that it cannot mix with its snapshot.
            raise MappingStreamStalled(f"a batch of {len(update.mapping)} was not applied in time") from exc
        if update.initial_sync_complete:
            self._client.initial_sync_complete = True


@asynccontextmanager
async def _cancelled_after(call: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        call.cancel()


class _Ending:
    """The status with which the other end ended a call.

    gRPC replaces it by INTERNAL if a later write fails, such as an acknowledgment that crosses the end.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._status: tuple[grpc.StatusCode, str | None] | None = None
        call.add_done_callback(self._done)

    def _done(self, _call: Any) -> None:
        self._status = _result(self._call.code()), _result(self._call.details())

    def sent(self, exc: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """The error that the other end sent, else `exc`; None for an end without an error."""
        if self._status is None or self._status[0] is exc.code():
            return exc
        code, details = self._status
        if code is grpc.StatusCode.OK:
            return None
        return grpc.aio.AioRpcError(code, exc.initial_metadata(), exc.trailing_metadata(), details=details)


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the coroutine waits")


# Texts in gRPC's errors about a connected peer that sends nothing; such errors have no code of their own.
_SILENCE = ("ping timeout", "keepalive", "settings frame", "timed out", "timeout occurred")


def _loss(exc: grpc.aio.AioRpcError) -> Loss:
    if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Loss.REFUSED  # an immediate retry would add to the load
    error = management_error("SyncMappings", exc.code().name, exc.details())
    if isinstance(error, ManagementRefused):
        return Loss.REFUSED
    details = (exc.details() or "").lower()
    silent = isinstance(error, ManagementTimeout) or any(word in details for word in _SILENCE)
    return Loss.SILENT if silent else Loss.UNREACHABLE


async def reconnected(channel: grpc.aio.Channel) -> None:
    """Wait until a channel has a new connection; for ever while the present one lasts.

    The end of a call is known before that of its connection, so the channel may be ready still when this begins.
    """
    state = channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
