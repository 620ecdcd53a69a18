"""The one connection to management: the mapping stream, and every unary call.

The stream's life (spec: proxy wire §5) is: connect, say who we are, take the snapshot batch by batch with an ack for
each, then changes; whatever ends it, wait and connect again. An attempt counts as connected on the *first message
received*, not on a successful send: a server that refuses the token must not make us hammer it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from netbird_host.backoff import Backoff
from netbird_proxy.api.errors import (
    ManagementRefused,
    ManagementTimeout,
    SettingsError,
    management_error,
)
from netbird_proxy.api.model import AccountId, PublicKey
from netbird_proxy.sources.management.tokens import OneTimeTokens
from netbird_wire.extensions import NO_STREAM
from netbird_wire.proxy_service_pb2 import (
    CreateProxyPeerRequest,
    CreateProxyPeerResponse,
    GetMappingUpdateRequest,
    GetMappingUpdateResponse,
    ProxyCapabilities,
    SyncMappingsAck,
    SyncMappingsInit,
    SyncMappingsRequest,
    SyncMappingsResponse,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub

log = structlog.get_logger("netbird_proxy.control")

MAX_MESSAGE_BYTES = 16 << 20
"""gRPC's own 4 MiB is too small for a batch of 500 large mappings or for a big account's map."""
REFUSED_FIRST, REFUSED_LONGEST = 0.8, 10.0
"""Seconds before a management that refused is asked again: the first interval and the longest."""
FAILED_FIRST, FAILED_LONGEST = 0.2, 2.0
"""The same after anything else. Each wait lies between nothing and twice the interval, so that proxies spread."""
FACTOR, SPREAD = 1.7, (0.0, 2.0)
AGAIN = 0.05
"""Seconds before a call is made again that came in between two streams."""
BACK_SPREAD = 0.5
"""Seconds over which proxies spread when management is there again, so that they do not all come at once."""
CREATE_PEER_TIMEOUT = 30.0

Update = SyncMappingsResponse | GetMappingUpdateResponse


class Loss(StrEnum):
    """Why there is no stream. Each has its counter, `management_…`."""

    UNREACHABLE = "unreachable"
    """Nobody is there, or the connection broke."""
    SILENT = "silent"
    """It is connected, or can be connected to, and does not say a word."""
    REFUSED = "refused"
    """It answered, and said no: a token that is not valid, an address that is another's."""
    CLOSED = "closed"
    """It ended the stream itself, as it does when it stops."""
    STALLED = "stalled"
    """We ended it: a batch of mappings could not be applied in time."""


class MappingSink(Protocol):
    """Where mappings go. One stream at a time; calls never overlap."""

    def stream_opened(self) -> None:
        """A new stream begins: what it brings until its snapshot is complete is all there is."""

    async def apply(self, update: Update) -> None:
        """Apply one message whole, in order, and return when it is in force. Bad mappings are reported, not raised."""

    def stream_lost(self) -> None: ...


class MappingStreamStalled(Exception):
    """A batch took longer than the watchdog allows. It was cancelled, and the stream with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What it takes to reach management.

    Attributes:
        url: `https://host[:port]` or `http://…` (plaintext; only with allow_insecure).
        roots: PEM file of roots to trust instead of the system's.
        silence: seconds without a word after which management is asked for a sign of life.
        patience: seconds within which it must give one.
    """

    url: str
    token: str = field(repr=False)
    proxy_id: str
    version: str
    domain: str
    allow_insecure: bool = False
    roots: Path | None = None
    rpc_timeout: float = 2.0
    batch_watchdog: float = 120.0
    silence: float = 20.0
    patience: float = 10.0


def open_channel(connection: Connection) -> grpc.aio.Channel:
    """The channel, not yet connected. SettingsError for a URL that cannot be used."""
    parts = urlsplit(connection.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"management.url {connection.url!r} is not an http:// or https:// address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    target = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    options = [
        ("grpc.keepalive_time_ms", round(connection.silence * 1000)),
        # The kernel's patience for bytes, and gRPC's own for the answer: with the first alone it would be a minute.
        ("grpc.keepalive_timeout_ms", round(connection.patience * 1000)),
        ("grpc.http2.ping_timeout_ms", round(connection.patience * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # The worker has its own back-off; the channel must not add a longer one beneath it.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # No back-off, this one: how long a connection may take to be made, four round trips of a slow line.
        ("grpc.min_reconnect_backoff_ms", 3_000),
    ]
    if parts.scheme == "https":
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(_roots(connection.roots)), options)
    if not connection.allow_insecure:
        raise SettingsError(
            f"management.url {connection.url!r} would send the proxy's token in the clear: "
            "use https://, or set management.allow_insecure = true for a connection nobody else can read"
        )
    return grpc.aio.insecure_channel(target, options)


def _roots(path: Path | None) -> bytes | None:
    """gRPC brings its own roots; an operator expects those of the system."""
    found = path or ssl.get_default_verify_paths().cafile
    if not found:
        return None
    try:
        return Path(found).read_bytes()
    except OSError as exc:
        raise SettingsError(f"management.roots: {found} cannot be read: {exc.strerror}") from exc


class ManagementClient:
    """Implements `netbird_proxy.api.steps.ManagementChannel`, and runs the mapping stream."""

    def __init__(
        self,
        connection: Connection,
        capabilities: Callable[[], ProxyCapabilities],
        sink: MappingSink,
        *,
        pick: Callable[[float, float], float] = random.uniform,
        count: Callable[[str], object] = lambda _name: None,
    ) -> None:
        """Args:
        capabilities: asked at each connect; all five of NetBird's fields set, also when false.
        count: adds one to a counter of the process.
        pick: chooses a wait between two bounds; tests make it steady.
        """
        self._connection = connection
        self._capabilities = capabilities
        self._sink = sink
        self._pick = pick
        self._channel = open_channel(connection)
        self._stub: ProxyServiceStub = ProxyServiceStub(self._channel)
        self._started = Timestamp()
        self._started.GetCurrentTime()
        self._sync_supported = True
        self._extensions: frozenset[str] = frozenset()
        self._connected = False
        self._up = asyncio.Event()
        self._count = count
        self.loss: Loss | None = None
        """Why the last stream ended or could not be had; None while there is one, and before the first."""
        self._renew = asyncio.Event()
        self.tokens = OneTimeTokens(count)
        self.initial_sync_complete = False
        """Whether a whole snapshot was ever applied; never falls back."""

    # ManagementChannel

    @property
    def channel(self) -> grpc.aio.Channel:
        return self._channel

    @property
    def exists(self) -> bool:
        return True

    @property
    def extensions(self) -> frozenset[str]:
        return self._extensions

    @property
    def connected(self) -> bool:
        return self._connected

    def metadata(self) -> tuple[tuple[str, str], ...]:
        # Per-call metadata, not call credentials: gRPC refuses those on plaintext, and we have judged plaintext above.
        return (
            ("authorization", f"Bearer {self._connection.token}"),
            ("x-netbird-proxy-id", self._connection.proxy_id),
        )

    @property
    def state(self) -> str:
        """In one word: `connected`, `connecting`, or why not (`Loss`)."""
        if self._connected:
            return "connected"
        return "connecting" if self.loss is None else self.loss.value

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        call = getattr(self._stub, method)
        seconds = self._connection.rpc_timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            try:
                return await call(request, timeout=max(0.0, until - loop.time()), metadata=self.metadata())
            except grpc.aio.AioRpcError as exc:
                # Management is there, and takes no word of a proxy whose stream is just being made anew.
                if not (exc.details() or "").startswith(NO_STREAM) or not await self._stream_by(until):
                    raise management_error(method, exc.code().name, exc.details()) from exc

    async def _stream_by(self, until: float) -> bool:
        """Wait for the stream, a moment at least: management may know sooner than we that it is over."""
        try:
            async with asyncio.timeout_at(until):
                await asyncio.sleep(AGAIN)
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    async def create_proxy_peer(
        self, account: AccountId, public_key: PublicKey, endpoint: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Register a tunnel's key with the freshest unspent token; with none left, reconnect for new ones and wait.

        Cancellation while it waits loses nothing. Raises ManagementError; ManagementTimeout after 30 s without a token.
        """
        try:
            async with asyncio.timeout(CREATE_PEER_TIMEOUT):
                while (token := self.tokens.spend(account, clock())) is None:
                    # Every snapshot brings a fresh token for each of its mappings.
                    self._renew.set()
                    await self.tokens.arrival()
        except TimeoutError as exc:
            raise ManagementTimeout(f"no one-time token of account {account} arrived") from exc
        request = CreateProxyPeerRequest(
            service_id=token.service,
            account_id=account,
            token=token.value,
            wireguard_public_key=public_key,
            cluster=self._connection.domain,
        )
        if endpoint and "wireguard_endpoint" in self._extensions:
            request.wireguard_endpoint = endpoint
        answer: CreateProxyPeerResponse = await self.call("CreateProxyPeer", request, timeout=CREATE_PEER_TIMEOUT)
        if not answer.success:
            raise ManagementRefused(f"CreateProxyPeer for account {account}: {answer.error_message or 'unknown error'}")

    # The stream

    async def run(self) -> None:
        """Keep the mapping stream up until cancelled."""
        refused = Backoff(REFUSED_FIRST, REFUSED_LONGEST, factor=FACTOR, spread=SPREAD, pick=self._pick)
        failed = Backoff(FAILED_FIRST, FAILED_LONGEST, factor=FACTOR, spread=SPREAD, pick=self._pick)
        while True:
            why = Loss.CLOSED
            try:
                try:
                    await self._attempt()
                finally:
                    self._lost()
                if not self._renew.is_set():
                    self._note(why)
            except grpc.aio.AioRpcError as exc:
                self._note(why := _loss(exc))
                log.warning("management.stream.lost", why=why.value, code=exc.code().name, details=exc.details())
            except MappingStreamStalled as exc:
                self._note(why := Loss.STALLED)
                log.error("management.stream.stalled", reason=str(exc))
            if self._had_message or self._renew.is_set():
                refused.reset()
                failed.reset()
            if self._renew.is_set():
                self._renew.clear()
            elif why in (Loss.REFUSED, Loss.STALLED):
                await asyncio.sleep(refused.next_wait())
            else:
                await self._pause(failed.next_wait())

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until a management that could not be reached is there again."""
        state = self._channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while state is not grpc.ChannelConnectivity.READY:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
                await asyncio.sleep(self._pick(0, BACK_SPREAD))

    _had_message = False

    def _note(self, why: Loss) -> None:
        self.loss = why
        self._count(f"management_{why}")

    def _lost(self) -> None:
        self._connected = False
        self._up.clear()
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
                log.info("management.stream.legacy", reason="SyncMappings is not implemented there")
        await self._updates()

    async def _sync(self) -> None:
        call: Any = self._stub.SyncMappings(metadata=self.metadata())
        ending = _Ending(call)
        async with _cancelled_after(call):
            try:
                await call.write(SyncMappingsRequest(init=self._introduction(SyncMappingsInit)))
                while (update := await self._next(call)) is not None:
                    await self._take(update)
                    with suppress(asyncio.InvalidStateError):  # the stream is over already: the next read says how
                        await call.write(SyncMappingsRequest(ack=SyncMappingsAck()))
            except grpc.aio.AioRpcError as exc:
                if (error := ending.sent(exc)) is not None:
                    raise error from exc
                log.info("management.stream.closed", reason="closed by server")

    async def _updates(self) -> None:
        call = self._stub.GetMappingUpdate(self._introduction(GetMappingUpdateRequest), metadata=self.metadata())
        async with _cancelled_after(call):
            while (update := await self._next(call)) is not None:
                await self._take(update)

    def _introduction(self, message: Any) -> Any:
        return message(
            proxy_id=self._connection.proxy_id,
            version=self._connection.version,
            started_at=self._started,
            address=self._connection.domain,
            capabilities=self._capabilities(),
        )

    async def _next(self, call: Any) -> Any | None:
        """The next message, or None at the stream's end or when fresh tokens are wanted."""
        read = asyncio.Task(call.read())
        renew = asyncio.Task(self._renew.wait())
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
            self._extensions = frozenset(update.management_extensions)
            self._connected = True
            self._up.set()
            self.loss = None
            log.info("management.stream.connected", extensions=sorted(self._extensions))
        try:
            async with asyncio.timeout(self._connection.batch_watchdog):
                await self._sink.apply(update)
        except TimeoutError as exc:
            # Cancelled and awaited before we reconnect, so that it cannot interleave with the next snapshot.
            raise MappingStreamStalled(f"a batch of {len(update.mapping)} was not applied in time") from exc
        if update.initial_sync_complete:
            self.initial_sync_complete = True

    async def close(self) -> None:
        await self._channel.close(grace=None)


@asynccontextmanager
async def _cancelled_after(call: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        call.cancel()


class _Ending:
    """The status with which the other end ended a call.

    gRPC replaces it by INTERNAL where a write of ours fails afterwards, as an acknowledgment that crosses the end does.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._status: tuple[grpc.StatusCode, str | None] | None = None
        call.add_done_callback(self._done)

    def _done(self, _call: Any) -> None:
        self._status = _result(self._call.code()), _result(self._call.details())

    def sent(self, exc: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """The error that the other end sent, where it is known, else `exc`; None for an end without one."""
        if self._status is None or self._status[0] is exc.code():
            return exc
        code, details = self._status
        if code is grpc.StatusCode.OK:
            return None
        return grpc.aio.AioRpcError(code, exc.initial_metadata(), exc.trailing_metadata(), details=details)


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing left to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the coroutine waits")


_SILENCE = ("ping timeout", "keepalive", "settings frame", "timed out", "timeout occurred")
"""What gRPC says of a peer that is connected and says nothing; it has no code for it."""


def _loss(exc: grpc.aio.AioRpcError) -> Loss:
    if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Loss.REFUSED  # for now: asking again at once would make it worse
    error = management_error("SyncMappings", exc.code().name, exc.details())
    if isinstance(error, ManagementRefused):
        return Loss.REFUSED
    details = (exc.details() or "").lower()
    silent = isinstance(error, ManagementTimeout) or any(word in details for word in _SILENCE)
    return Loss.SILENT if silent else Loss.UNREACHABLE
