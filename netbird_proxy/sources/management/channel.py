"""The gRPC channel to management, and the unary calls on it."""

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
"""Seconds before a call that came in between two streams is repeated."""
CREATE_PEER_TIMEOUT = 30.0


class Loss(StrEnum):
    """The reason that no stream is open. Each has its counter, `management_…`."""

    UNREACHABLE = "unreachable"
    """No server answers, or the connection broke."""
    SILENT = "silent"
    """Management accepts connections, or is connected, and sends nothing."""
    REFUSED = "refused"
    """Management refused the proxy, as for an invalid token or another proxy's address."""
    CLOSED = "closed"
    """Management ended the stream, as it does when it stops."""
    STALLED = "stalled"
    """The proxy ended the stream, because it could not apply a batch of mappings in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The address of management, and the parameters of the connection.

    Attributes:
        url: `https://host[:port]` or `http://…` (plaintext; only with allow_insecure).
        roots: PEM file of certificate authorities that replace the system's.
        silence: seconds without a message from management after which a keep-alive ping is sent.
        patience: maximum time, in seconds, for the reply to it.
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
        # The first bounds unacknowledged bytes, the second the reply: without it, a silent peer would have a minute.
        ("grpc.keepalive_timeout_ms", round(connection.patience * 1000)),
        ("grpc.http2.ping_timeout_ms", round(connection.patience * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # The mapping stream has its own back-off; the channel must not add a longer one.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Not a back-off but the time to connect: four round trips on a slow line.
        ("grpc.min_reconnect_backoff_ms", 3_000),
    ]
    if parts.scheme == "https":
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(_roots(connection.roots)), options)
    if not connection.allow_insecure:
        raise SettingsError(
            f"management.url {connection.url!r} would send the proxy's token unencrypted: "
            "use https://, or set management.allow_insecure = true for a connection that is private otherwise"
        )
    return grpc.aio.insecure_channel(target, options)


def _roots(path: Path | None) -> bytes | None:
    """The roots of `path`, or the system's, which operators expect and gRPC does not use by itself."""
    file = path or ssl.get_default_verify_paths().cafile
    if not file:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as exc:
        raise SettingsError(f"management.roots: {file} cannot be read: {exc.strerror}") from exc


class ManagementClient:
    """Implements `netbird_proxy.ManagementChannel`.

    Attributes:
        connection: the address of management, and this proxy's credentials there.
        stub: the calls of `ProxyService`.
        tokens: unspent one-time tokens that arrived with mappings.
        renewal: set when no token is left; the mapping stream then starts again, because a snapshot brings new ones.
        loss: reason that the last stream ended or could not be opened; None while one is open, and before the first.
        initial_sync_complete: a whole snapshot has been applied once. Never reset.
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
        # Per-call metadata, because gRPC refuses call credentials on plaintext, which `open_channel` has judged.
        return (
            ("authorization", f"Bearer {self.connection.token}"),
            ("x-netbird-proxy-id", self.connection.proxy_id),
        )

    @property
    def state(self) -> str:
        """`connected`, `connecting`, or the reason that no stream is open (`Loss`)."""
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
                # Management answers, but refuses calls of a proxy whose stream is just being opened again.
                if not (exc.details() or "").startswith(NO_STREAM) or not await self._stream_by(until):
                    raise management_error(method, exc.code().name, exc.details()) from exc

    async def _stream_by(self, until: float) -> bool:
        """Wait for the stream, for a moment at least: management may notice its end before this proxy does."""
        try:
            async with asyncio.timeout_at(until):
                await asyncio.sleep(AGAIN)
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    async def create_proxy_peer(
        self,
        account: AccountId,
        public_key: PublicKey,
        endpoint: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        serves_dns: bool = False,
    ) -> None:
        """Register a tunnel's key with the latest unspent token; if none is left, reconnect for new ones and wait.

        Safe to cancel while it waits. Raises ManagementError, and ManagementTimeout after 30 s without a token.
        """
        try:
            async with asyncio.timeout(CREATE_PEER_TIMEOUT):
                while (token := self.tokens.spend(account, clock())) is None:
                    # Every snapshot brings a new token for each of its mappings.
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
            request.serves_dns = serves_dns
        answer: CreateProxyPeerResponse = await self.call("CreateProxyPeer", request, timeout=CREATE_PEER_TIMEOUT)
        if not answer.success:
            raise ManagementRefused(f"CreateProxyPeer for account {account}: {answer.error_message or 'unknown error'}")

    async def close(self) -> None:
        await self._channel.close(grace=None)
