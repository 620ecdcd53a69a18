"""Our node's calls to management: registration, login and the stream of network maps.

Every message is encrypted between our WireGuard key and management's key, which can change with every restart of
management; so it is requested before each login and each stream.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from netbird_proxy import (
    AccountHandle,
    ManagementError,
    ManagementRefused,
    ManagementUnavailable,
    PublicKey,
    management_error,
)
from netbird_wire.envelope import Envelope, EnvelopeError, format_key, parse_key, public_key
from netbird_wire.management_pb2 import (
    Empty,
    EncryptedMessage,
    Flags,
    LoginRequest,
    LoginResponse,
    PeerCapabilityIPv6Overlay,
    PeerCapabilitySourcePrefixes,
    PeerKeys,
    PeerSystemMeta,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceStub

KEY_TIMEOUT, LOGIN_TIMEOUT = 5.0, 10.0
FAILURES = (grpc.aio.AioRpcError, grpc.aio.UsageError, EnvelopeError)
# The version that we report. It is pinned and has the form of a release: a version that management cannot compare, or
# one below 0.59.0, makes it fall back to old behavior for the whole account.
AGENT_VERSION = "0.77.1"


class NotRegistered(ManagementRefused):
    """Management does not know our key (any more): a new registration helps, a retry does not."""


def system_meta(proxy_id: str, *, inbound: bool) -> PeerSystemMeta:
    """Describe our system. The result is constant in a process: management may ban peers whose description changes.

    The map version is left at 0, which requests the complete map instead of its components.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    version = release.get("VERSION_ID", "")
    return PeerSystemMeta(
        hostname=f"ingress-proxy-{proxy_id}",
        goOS=platform.system().lower(),
        kernel=platform.system(),
        core=version,
        platform=platform.machine(),
        OS=release.get("NAME", platform.system()),
        netbirdVersion=AGENT_VERSION,
        kernelVersion=platform.release(),
        OSVersion=version,
        flags=Flags(disableServerRoutes=True, blockLANAccess=True, blockInbound=not inbound),
        capabilities=[PeerCapabilitySourcePrefixes, PeerCapabilityIPv6Overlay],
    )


class Enrollment:
    """The registration of one account's node at management.

    Args:
        endpoint: `host:port` at which stock WireGuard clients reach us, or empty.
    """

    def __init__(self, account: AccountHandle, private_key: bytes, *, endpoint: str, meta: PeerSystemMeta) -> None:
        self._account = account
        self._private_key = private_key
        self._public_key = format_key(public_key(private_key))
        self._endpoint = endpoint
        self._meta = meta
        self._stub = ManagementServiceStub(account.management.channel)

    @property
    def management_connected(self) -> bool:
        return self._account.management.connected

    async def register(self) -> None:
        """Register our key with a one-time token. Raises ManagementError."""
        await self._account.register(PublicKey(self._public_key), endpoint=self._endpoint)

    async def login(self) -> LoginResponse:
        """Log in; the answer has our node's configuration. Raises ManagementError, NotRegistered among others."""
        request = LoginRequest(meta=self._meta, peerKeys=PeerKeys(wgPubKey=self._public_key.encode("ascii")))
        try:
            envelope = await self._envelope()
            answer = await self._stub.Login(
                self._sealed(envelope, request), timeout=LOGIN_TIMEOUT, metadata=self._account.management.metadata()
            )
            return envelope.open(answer.body, LoginResponse)
        except asyncio.CancelledError as exc:
            if _task_is_cancelled():
                raise
            raise ManagementUnavailable("Login: the channel was closed during the call") from exc
        except FAILURES as exc:
            raise _failure("Login", exc) from exc

    async def sync(self) -> AsyncIterator[SyncResponse]:
        """Yield network maps as management sends them, the first at once. Ends when management ends the stream.

        Raises ManagementError, NotRegistered among others. Close the generator to leave the stream.
        """
        try:
            envelope = await self._envelope()
            call = self._stub.Sync(
                self._sealed(envelope, SyncRequest(meta=self._meta)), metadata=self._account.management.metadata()
            )
            try:
                async for message in call:
                    yield envelope.open(message.body, SyncResponse)
            finally:
                call.cancel()
        except asyncio.CancelledError as exc:
            if _task_is_cancelled():
                raise
            raise ManagementUnavailable("Sync: the channel was closed during the call") from exc
        except FAILURES as exc:
            raise _failure("Sync", exc) from exc

    async def _envelope(self) -> Envelope:
        answer = await self._stub.GetServerKey(
            Empty(), timeout=KEY_TIMEOUT, metadata=self._account.management.metadata()
        )
        return Envelope(self._private_key, parse_key(answer.key))

    def _sealed(self, envelope: Envelope, request: LoginRequest | SyncRequest) -> EncryptedMessage:
        return EncryptedMessage(wgPubKey=self._public_key, body=envelope.seal(request))


def _task_is_cancelled() -> bool:
    """True if the current task was cancelled. gRPC also raises CancelledError when a call or its channel is closed;
    without the distinction it would end the task silently."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _failure(call: str, exc: Exception) -> ManagementError:
    if not isinstance(exc, grpc.aio.AioRpcError):
        return ManagementRefused(f"{call}: {exc}")
    code = exc.code()
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND):
        return NotRegistered(f"{call}: {code.name}: {exc.details()}")
    return management_error(call, code.name, exc.details())
