"""The one channel to management, and every unary call on it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc.aio

from netbird_proxy.api.errors import ManagementRefused, ManagementTimeout, SettingsError, management_error
from netbird_proxy.api.model import AccountId, PublicKey
from netbird_proxy.sources.management.tokens import OneTimeTokens
from netbird_wire.extensions import NO_STREAM
from netbird_wire.proxy_service_pb2 import CreateProxyPeerRequest, CreateProxyPeerResponse
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub

MAX_MESSAGE_BYTES = 16 << 20
"""gRPC's own 4 MiB is too small for a batch of 500 large mappings or for a big account's map."""
AGAIN = 0.05
"""Seconds before a call is made again that came in between two streams."""
CREATE_PEER_TIMEOUT = 30.0


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
    """Implements `netbird_proxy.ManagementChannel`.

    Attributes:
        connection: the address of management, and this proxy's credentials there.
        stub: the calls of `ProxyService`.
        tokens: one-time tokens that came with mappings and are not spent.
        renewal: set when no token is left; the mapping stream then begins anew, as its snapshot brings fresh ones.
        loss: why the last stream ended or could not be opened; None while there is one, and before the first.
        initial_sync_complete: a whole snapshot was applied once. It stays true.
    """

    def __init__(self, connection: Connection, *, count: Callable[[str], object] = lambda _name: None) -> None:
        """Args:
        count: adds one to a counter of the process.
        """
        self.connection = connection
        self._channel = open_channel(connection)
        self.stub: ProxyServiceStub = ProxyServiceStub(self._channel)
        self._extensions: frozenset[str] = frozenset()
        self._up = asyncio.Event()
        self.renewal = asyncio.Event()
        self.loss: Loss | None = None
        self.tokens = OneTimeTokens(count)
        self.initial_sync_complete = False

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
        return self._up.is_set()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        # Per-call metadata, not call credentials: gRPC refuses those on plaintext, and we have judged plaintext above.
        return (
            ("authorization", f"Bearer {self.connection.token}"),
            ("x-netbird-proxy-id", self.connection.proxy_id),
        )

    @property
    def state(self) -> str:
        """In one word: `connected`, `connecting`, or why not (`Loss`)."""
        if self.connected:
            return "connected"
        return "connecting" if self.loss is None else self.loss.value

    def stream_opened(self, extensions: frozenset[str]) -> None:
        """The mapping stream has received its first message, which names management's extensions."""
        self._extensions = extensions
        self.loss = None
        self._up.set()

    def stream_lost(self) -> None:
        self._up.clear()

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        call = getattr(self.stub, method)
        seconds = self.connection.rpc_timeout if timeout is None else timeout
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
                    self.renewal.set()
                    await self.tokens.arrival()
        except TimeoutError as exc:
            raise ManagementTimeout(f"no one-time token of account {account} arrived") from exc
        request = CreateProxyPeerRequest(
            service_id=token.service,
            account_id=account,
            token=token.value,
            wireguard_public_key=public_key,
            cluster=self.connection.domain,
        )
        if endpoint and "wireguard_endpoint" in self._extensions:
            request.wireguard_endpoint = endpoint
        answer: CreateProxyPeerResponse = await self.call("CreateProxyPeer", request, timeout=CREATE_PEER_TIMEOUT)
        if not answer.success:
            raise ManagementRefused(f"CreateProxyPeer for account {account}: {answer.error_message or 'unknown error'}")

    async def close(self) -> None:
        await self._channel.close(grace=None)
