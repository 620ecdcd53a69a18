"""A node's calls to management.

Every message is encrypted between our WireGuard key and management's key, which can change with every restart of
management; so it is requested before each call and each stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import Message

from netbird_overlay.membership.errors import ManagementFailure, failure
from netbird_wire.envelope import Envelope, EnvelopeError, format_key, parse_key, public_key
from netbird_wire.management_pb2 import (
    Checks,
    Empty,
    EncryptedMessage,
    LoginRequest,
    LoginResponse,
    PeerKeys,
    PeerSystemMeta,
    SyncMetaRequest,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceStub

M = TypeVar("M", bound=Message)

MAX_MESSAGE_BYTES = 16 << 20
"""gRPC's own 4 MiB is too small for a big account's map."""
KEEPALIVE, KEEPALIVE_TIMEOUT = 30.0, 10.0
"""Seconds of silence after which a ping is sent, and for which its reply is awaited. NetBird's servers close
connections of clients that ping more often than every 15 s."""
KEY_TIMEOUT, CALL_TIMEOUT, LOGOUT_TIMEOUT = 5.0, 10.0, 15.0
MAX_CHECKS = 1024
"""Maximum number of paths of posture checks that are reported; further ones are left out."""
FAILURES = (grpc.aio.AioRpcError, grpc.aio.UsageError, EnvelopeError)

Metadata = Sequence[tuple[str, str]]


def open_channel(url: str, *, roots: bytes | None = None) -> grpc.aio.Channel:
    """Return a channel to management at `https://host[:port]` or `http://…` (plaintext HTTP/2), not yet connected.

    Args:
        roots: PEM of certificate authorities; None takes gRPC's.

    Raises:
        ValueError: the URL has another scheme, or no host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    target = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    options = [
        ("grpc.keepalive_time_ms", round(KEEPALIVE * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT * 1000)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 200),  # the caller has its own back-off
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    if parts.scheme == "https":
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
    return grpc.aio.insecure_channel(target, options)


class ManagementClient:
    """The calls of one node.

    Args:
        channel: to management; see `open_channel`. The caller closes it.
        private_key: the node's WireGuard key, 32 bytes.
        meta: returns the description of our system for the given paths of posture checks.
        metadata: returns the metadata of each call.

    All calls raise ManagementFailure.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        private_key: bytes,
        meta: Callable[[Sequence[str]], PeerSystemMeta],
        *,
        metadata: Callable[[], Metadata] = tuple,
    ) -> None:
        self._private_key = private_key
        self._public_key = format_key(public_key(private_key))
        self._meta = meta
        self._metadata = metadata
        self._checks: tuple[str, ...] = ()
        self._stub = ManagementServiceStub(channel)

    @property
    def public_key(self) -> str:
        """The node's key, as text."""
        return self._public_key

    async def server_key(self) -> bytes:
        """Return management's present key."""
        key: bytes = await self._guarded("GetServerKey", self._server_key())
        return key

    async def login(self, *, setup_key: str = "", jwt: str = "", dns_labels: Sequence[str] = ()) -> LoginResponse:
        """Log in; the answer has our node's configuration.

        Without a setup key and a token, the node must be registered already.

        Args:
            setup_key: registers the node.
            jwt: a token of the user, which registers the node or renews its login.
            dns_labels: extra names of the node.

        Raises:
            NotRegistered, LoginExpired: only without a setup key and a token.
        """
        request = LoginRequest(
            setupKey=setup_key,
            jwtToken=jwt,
            dnsLabels=dns_labels,
            meta=self._meta(self._checks),
            peerKeys=PeerKeys(wgPubKey=self._public_key.encode("ascii")),
        )
        response: LoginResponse = await self._guarded(
            "Login", self._sealed(self._stub.Login, request, LoginResponse), member=not (setup_key or jwt)
        )
        self.note_checks(response.Checks)
        return response

    async def sync(self) -> AsyncIterator[SyncResponse]:
        """Yield what management sends, a complete map at once. Ends when management ends the stream.

        Close the generator to leave the stream.

        Raises:
            NotRegistered, LoginExpired: among others.
        """
        try:
            envelope = await self._envelope()
            call = self._stub.Sync(
                self._message(envelope, SyncRequest(meta=self._meta(self._checks))), metadata=self._metadata()
            )
            try:
                async for message in call:
                    yield envelope.open(message.body, SyncResponse)
            finally:
                call.cancel()
        except asyncio.CancelledError as exc:
            if _task_is_cancelled():
                raise
            raise failure("Sync", "UNAVAILABLE", "the channel was closed during the call") from exc
        except FAILURES as exc:
            raise _failure("Sync", exc) from exc

    def note_checks(self, checks: Sequence[Checks]) -> bool:
        """Note the posture checks of a message. True if they changed, which management expects in `sync_meta`."""
        paths = dict.fromkeys(path for check in checks for path in check.Files)
        before, self._checks = self._checks, tuple(paths)[:MAX_CHECKS]
        return before != self._checks

    async def sync_meta(self) -> None:
        """Send the description of our system again."""
        request = SyncMetaRequest(meta=self._meta(self._checks))
        await self._guarded("SyncMeta", self._sealed(self._stub.SyncMeta, request, None))

    async def logout(self) -> None:
        """Remove the node from the network."""
        await self._guarded("Logout", self._sealed(self._stub.Logout, Empty(), None, timeout=LOGOUT_TIMEOUT))

    async def pkce_flow(self) -> bytes:
        """Return the identity provider's configuration for a login in a browser, as the bytes of management's message.

        The call fails with the code NOT_FOUND if management has no such login.
        """
        return await self._flow("GetPKCEAuthorizationFlow", self._stub.GetPKCEAuthorizationFlow)

    async def device_flow(self) -> bytes:
        """Return the identity provider's configuration for a login on another device, like `pkce_flow`."""
        return await self._flow("GetDeviceAuthorizationFlow", self._stub.GetDeviceAuthorizationFlow)

    async def _flow(self, name: str, call: Any) -> bytes:
        answer: Empty = await self._guarded(name, self._sealed(call, Empty(), Empty), member=False)
        return answer.SerializeToString()  # all of its fields are unknown to `Empty`, and kept

    async def healthy(self) -> None:
        """Ask whether management serves."""
        await self._guarded("isHealthy", self._stub.isHealthy(Empty(), timeout=CALL_TIMEOUT, metadata=self._metadata()))

    async def _server_key(self) -> bytes:
        answer = await self._stub.GetServerKey(Empty(), timeout=KEY_TIMEOUT, metadata=self._metadata())
        return parse_key(answer.key)

    async def _envelope(self) -> Envelope:
        return Envelope(self._private_key, await self._server_key())

    def _message(self, envelope: Envelope, request: Message) -> EncryptedMessage:
        return EncryptedMessage(wgPubKey=self._public_key, body=envelope.seal(request))

    async def _sealed(
        self, call: Any, request: Message, kind: type[M] | None, *, timeout: float = CALL_TIMEOUT
    ) -> M | None:
        envelope = await self._envelope()
        answer = await call(self._message(envelope, request), timeout=timeout, metadata=self._metadata())
        return envelope.open(answer.body, kind) if kind is not None else None

    async def _guarded(self, name: str, call: Any, *, member: bool = True) -> Any:
        try:
            return await call
        except asyncio.CancelledError as exc:
            if _task_is_cancelled():
                raise
            raise failure(name, "UNAVAILABLE", "the channel was closed during the call") from exc
        except FAILURES as exc:
            raise _failure(name, exc, member=member) from exc


def _task_is_cancelled() -> bool:
    """True if the current task was cancelled. gRPC also raises CancelledError when a call or its channel is closed;
    without the distinction it would end the task silently."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _failure(call: str, exc: Exception, *, member: bool = True) -> ManagementFailure:
    if isinstance(exc, grpc.aio.AioRpcError):
        return failure(call, exc.code().name, exc.details(), member=member)
    # An answer that cannot be opened: management changed its key between two calls, or it is no management.
    return ManagementFailure(f"{call}: {exc}", retryable=isinstance(exc, EnvelopeError))
