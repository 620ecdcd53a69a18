"""The service for peers of the overlay: login, and the stream of network maps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from nacl.public import PrivateKey

from netbird_host.buckets import Buckets, Places
from netbird_management.compute.network_map import NetworkMaps, peer_config
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import call_address
from netbird_management.grpc.peer_streams import QUIET_SECONDS, PeerStream, PeerStreams
from netbird_management.model.accounts import Peer, PeerMeta
from netbird_management.model.admission import admitted
from netbird_management.model.errors import Conflict
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.peers import note_login, set_connected, set_disconnected, update_peer_meta
from netbird_management.operations.setup_keys import enroll
from netbird_management.store.state import State
from netbird_wire.envelope import Envelope, EnvelopeError, format_key, parse_key
from netbird_wire.management_pb2 import (
    Empty,
    EncryptedMessage,
    HostConfig,
    LoginRequest,
    LoginResponse,
    NetbirdConfig,
    NetworkMap,
    PeerSystemMeta,
    ServerKeyResponse,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceServicer

# Logins and streams that a peer's key may start at once, and the time until it may start another: each writes.
LOGINS: Final = 20
LOGIN_SECONDS: Final = 3.0
LOGIN_KEYS: Final = 65_536
"""Maximum number of keys whose logins are counted."""
STREAMS_OF_A_KEY: Final = 4
"""Maximum number of concurrent streams of a key; only the newest lasts, the others are starting or ending."""
_TEXT: Final = 255
_NOT_REGISTERED: Final = "peer is not registered"
M = TypeVar("M", bound=Message)


class ManagementService(ManagementServiceServicer):
    """`management.ManagementService`. Each process has a new key pair; peers request the public key before each call.

    Args:
        signal: `host:port` of the signal server that management sends to peers. Agents need one to connect to each
            other; this project's proxies do not.
        signal_tls: True if the signal server uses TLS.
        quiet: time that an agent's map waits for further changes, in seconds.
    """

    def __init__(
        self,
        state: State,
        maps: NetworkMaps,
        streams: PeerStreams,
        *,
        signal: str,
        signal_tls: bool = False,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        self._state = state
        self._maps = maps
        self._streams = streams
        self._quiet = quiet
        clock = asyncio.get_running_loop().time
        self._logins = Buckets(clock, burst=LOGINS, per_second=1 / LOGIN_SECONDS, keys=LOGIN_KEYS)
        self._syncs = Places(STREAMS_OF_A_KEY)
        self._private_key = bytes(PrivateKey.generate())
        self._public_key = format_key(bytes(PrivateKey(self._private_key).public_key))
        protocol = HostConfig.HTTPS if signal_tls else HostConfig.HTTP
        self._config = NetbirdConfig(signal=HostConfig(uri=signal, protocol=protocol))

    async def GetServerKey(self, request: Empty, context: Any) -> ServerKeyResponse:  # noqa: N802
        return ServerKeyResponse(key=self._public_key)

    async def isHealthy(self, request: Empty, context: Any) -> Empty:  # noqa: N802
        return Empty()

    async def Login(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        envelope, login = self._opened(request, LoginRequest)
        if not login.HasField("meta"):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "peer system meta has to be provided")
        peer = await self._admitted(request.wgPubKey, login)
        ssh_key = login.peerKeys.sshPubKey.decode("utf-8", "replace")[:4096] if login.HasField("peerKeys") else None
        # Stored before the response: the peer's capabilities decide the addresses in it, and in the maps that follow.
        peer = await update_peer_meta(self._state, peer, _meta(login.meta), ssh_key=ssh_key)
        peer = await note_login(self._state, peer)
        account, peer = self._current(peer.key)
        response = LoginResponse(
            netbirdConfig=self._config, peerConfig=peer_config(account, peer), sessionExpiresAt=Timestamp()
        )
        return self._sealed(envelope, response)

    # grpc.aio also serves a coroutine that writes by its context, which can be awaited to its end where an abandoned
    # generator cannot.
    async def Sync(self, request: EncryptedMessage, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        envelope, sync = self._opened(request, SyncRequest)
        with self._syncs.place(request.wgPubKey, refusal=self._too_many_streams):
            await self._sync(request, envelope, sync, context)

    def _too_many_streams(self) -> Refused:
        self._state.count("peer_streams_refused")
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams use this key: end the earlier ones first")

    async def _sync(self, request: EncryptedMessage, envelope: Envelope, sync: SyncRequest, context: Any) -> None:
        _, peer = self._current(request.wgPubKey)
        if sync.HasField("meta"):
            peer = await update_peer_meta(self._state, peer, _meta(sync.meta))
        async with self._connected(peer, call_address()) as stream:
            account, peer = self._current(peer.key)
            sent = self._maps.of(account, peer)
            await context.write(self._sealed(envelope, self._response(account, peer, sent, first=True)))
            async for _ in stream.changes(0 if peer.proxy is not None else self._quiet):
                account, peer = self._current(peer.key)
                network_map = self._maps.of(account, peer)
                if peer.proxy is None and _same(network_map, sent):
                    continue
                # A proxy gets every map, even an equal one: it revalidates open access on each map, and access can
                # change without a change of the map.
                sent = network_map
                await context.write(self._sealed(envelope, self._response(account, peer, sent, first=False)))

    async def _admitted(self, key: str, login: LoginRequest) -> Peer:
        """The peer with this key; a new one if the login has a setup key. Raises `Refused`."""
        match = self._state.snapshots.by_peer_key(key)
        if match is None:
            if login.setupKey:
                return await self._enrolled(key, login)
            if login.jwtToken:
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, "login of a peer with a user's token is not supported")
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, _NOT_REGISTERED)
        account, peer = match
        _check_owner(account, peer)
        return peer

    async def _enrolled(self, key: str, login: LoginRequest) -> Peer:
        meta = _meta(login.meta)
        ssh_key = login.peerKeys.sshPubKey.decode("utf-8", "replace")[:4096] if login.HasField("peerKeys") else ""
        try:
            return await enroll(
                self._state, login.setupKey, key=key, hostname=meta.hostname, meta=meta, ssh_key=ssh_key
            )
        except Conflict as error:  # a concurrent login registered the same key
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, error.message) from error

    def _current(self, key: str) -> tuple[AccountSnapshot, Peer]:
        match = self._state.snapshots.by_peer_key(key)
        if match is None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, _NOT_REGISTERED)
        _check_owner(*match)
        return match

    @asynccontextmanager
    async def _connected(self, peer: Peer, address: str) -> AsyncIterator[PeerStream]:
        """A stream of the peer, which is connected while its newest stream lasts."""
        stream = self._streams.join(peer)
        try:
            if not await set_connected(self._state, peer, started_ns=stream.started_ns, connection_ip=address):
                raise Refused(grpc.StatusCode.ABORTED, "the peer opened a newer stream")
            yield stream
        finally:
            self._streams.leave(stream)
            try:
                ended = set_disconnected(self._state, peer, started_ns=stream.started_ns)
                await self._state.to_the_end(ended)
            finally:
                self._streams.cleaned_up()

    def _response(self, account: AccountSnapshot, peer: Peer, network_map: NetworkMap, *, first: bool) -> SyncResponse:
        return SyncResponse(
            # The first response only: in a later one, a configuration without relays would make the agent stop its own.
            netbirdConfig=self._config if first else None,
            peerConfig=peer_config(account, peer),
            remotePeersIsEmpty=network_map.remotePeersIsEmpty,
            NetworkMap=network_map,
            sessionExpiresAt=Timestamp(),
        )

    def _opened(self, request: EncryptedMessage, kind: type[M]) -> tuple[Envelope, M]:
        """Decrypts a request. Raises `Refused` for a message that its key did not seal for this process, and for a key
        that logs in too often."""
        try:
            envelope = Envelope(self._private_key, parse_key(request.wgPubKey))
            message = envelope.open(request.body, kind)
        except EnvelopeError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"invalid request message: {error}") from error
        if not self._logins.take(request.wgPubKey):  # after the envelope, so that only the peer itself uses its limit
            self._state.count("peer_logins_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "this peer logs in too often: try again later")
        return envelope, message

    def _sealed(self, envelope: Envelope, message: Message) -> EncryptedMessage:
        return EncryptedMessage(wgPubKey=self._public_key, body=envelope.seal(message))


def _check_owner(account: AccountSnapshot, peer: Peer) -> None:
    if not admitted(peer, account):
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "the peer's user is blocked")


def _same(first: NetworkMap, second: NetworkMap) -> bool:
    """True if two maps differ at most in their serial."""
    copy = NetworkMap()
    copy.CopyFrom(first)
    copy.Serial = second.Serial
    return copy == second


def _meta(given: PeerSystemMeta) -> PeerMeta:
    """The stored part of an agent's report, cut and without control characters.

    A hostname loses "@", as it must not look like a user's e-mail address where a peer is shown in place of a user.
    """

    def text(value: str) -> str:
        return "".join(char for char in value if char.isprintable())[:_TEXT]

    return PeerMeta(
        hostname=text(given.hostname.replace("@", "")),
        go_os=text(given.goOS),
        kernel=text(given.kernel),
        core=text(given.core),
        platform=text(given.platform),
        os=text(given.OS),
        netbird_version=text(given.netbirdVersion),
        ui_version=text(given.uiVersion),
        kernel_version=text(given.kernelVersion),
        os_version=text(given.OSVersion),
        serial_number=text(given.sysSerialNumber),
        capabilities=tuple(sorted(set(given.capabilities)))[:16],
    )
