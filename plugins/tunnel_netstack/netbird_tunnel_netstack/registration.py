"""What our node says to management about itself: registration, login, and the stream of network maps.

Every body is sealed between our WireGuard key and management's, whose key may be new at every start of its process, so
it is asked for before each login and each stream.
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
AGENT_VERSION = "0.77.1"
"""What we say our version is. Pinned and release-like: a version that management cannot compare, or one below 0.59.0,
makes it fall back to old behavior for the whole account."""


class NotRegistered(ManagementRefused):
    """Management does not know our key, or no longer: registering again helps, asking again does not."""


def system_meta(proxy_id: str, *, inbound: bool) -> PeerSystemMeta:
    """What we are. The same at every call of one process: management may ban a peer whose answers keep changing.

    The version of the map is left at 0, which asks for the finished map instead of its components.
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
    """One account's node, as management knows it.

    Args:
        endpoint: `host:port` where stock WireGuard clients reach us, or empty.
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
        """Spend a one-time token on making our key known. Raises ManagementError."""
        await self._account.register(PublicKey(self._public_key), endpoint=self._endpoint)

    async def login(self) -> LoginResponse:
        """Who management says we are. Raises ManagementError, NotRegistered among them."""
        request = LoginRequest(meta=self._meta, peerKeys=PeerKeys(wgPubKey=self._public_key.encode("ascii")))
        try:
            envelope = await self._envelope()
            answer = await self._stub.Login(
                self._sealed(envelope, request), timeout=LOGIN_TIMEOUT, metadata=self._account.management.metadata()
            )
            return envelope.open(answer.body, LoginResponse)
        except asyncio.CancelledError as exc:
            if _we_are_canceled():
                raise
            raise ManagementUnavailable("Login: the call was closed beneath us") from exc
        except FAILURES as exc:
            raise _failure("Login", exc) from exc

    async def sync(self) -> AsyncIterator[SyncResponse]:
        """Network maps as management sends them, the first at once. Ends when management ends the stream.

        Raises ManagementError, NotRegistered among them. Close the generator to leave the stream.
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
            if _we_are_canceled():
                raise
            raise ManagementUnavailable("Sync: the call was closed beneath us") from exc
        except FAILURES as exc:
            raise _failure("Sync", exc) from exc

    async def _envelope(self) -> Envelope:
        answer = await self._stub.GetServerKey(
            Empty(), timeout=KEY_TIMEOUT, metadata=self._account.management.metadata()
        )
        return Envelope(self._private_key, parse_key(answer.key))

    def _sealed(self, envelope: Envelope, request: LoginRequest | SyncRequest) -> EncryptedMessage:
        return EncryptedMessage(wgPubKey=self._public_key, body=envelope.seal(request))


def _we_are_canceled() -> bool:
    """Whether a CancelledError is our own. gRPC raises one too when a call or its channel is closed beneath the caller;
    taken for ours, it would end the task in silence."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _failure(what: str, exc: Exception) -> ManagementError:
    if not isinstance(exc, grpc.aio.AioRpcError):
        return ManagementRefused(f"{what}: {exc}")
    code = exc.code()
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND):
        return NotRegistered(f"{what}: {code.name}: {exc.details()}")
    return management_error(what, code.name, exc.details())
