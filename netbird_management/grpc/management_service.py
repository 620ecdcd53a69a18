"""The service for peers of the overlay: login, and the stream of network maps."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from nacl.public import PrivateKey

from netbird_host.buckets import Buckets, Places
from netbird_host.sources import source_of
from netbird_management.compute.network_map import NetworkMaps, peer_config
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import call_address
from netbird_management.grpc.peer_configuration import PeerConfiguration
from netbird_management.grpc.peer_meta import peer_meta
from netbird_management.grpc.peer_streams import QUIET_SECONDS, Due, PeerStream, PeerStreams
from netbird_management.login.agent_logins import AgentLogins
from netbird_management.login.identity_provider import ProviderFailed
from netbird_management.model.accounts import Account, Peer, User
from netbird_management.model.admission import Refusal, login_expires_at, peer_refusal
from netbird_management.model.errors import Conflict
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.peers import (
    checked_dns_labels,
    delete_peer,
    enroll_by_user,
    note_login,
    set_connected,
    set_disconnected,
    update_peer_meta,
)
from netbird_management.operations.setup_keys import enroll
from netbird_management.store.state import State
from netbird_wire.envelope import Envelope, EnvelopeError, format_key, parse_key
from netbird_wire.management_pb2 import (
    Empty,
    EncryptedMessage,
    LoginRequest,
    LoginResponse,
    ServerKeyResponse,
    SyncMetaRequest,
    SyncRequest,
    SyncResponse,
)
from netbird_wire.management_pb2_grpc import ManagementServiceServicer

# Logins and streams that a peer's key may start at once, and the time until it may start another: each writes.
LOGINS: Final = 20
LOGIN_SECONDS: Final = 3.0
LOGIN_KEYS: Final = 65_536
"""Maximum number of keys whose logins are counted."""
# Logins by a user's token that may wait for the identity provider at once: of one address (IPv6: a /64), and of all.
TOKEN_LOGINS_OF_A_SOURCE: Final = 16
TOKEN_LOGINS: Final = 512
STREAMS_OF_A_KEY: Final = 4
"""Maximum number of concurrent streams of a key; only the newest lasts, the others are starting or ending."""
_NOT_REGISTERED: Final = "peer is not registered"
_BLOCKED: Final = "the peer's user is blocked"
# Agents show the sentence, and ask their user to log in.
_REFUSALS: Final = {Refusal.LOGIN_EXPIRED: "peer login has expired, please log in once more"}
MAP_BYTES: Final = (16 << 20) - (64 << 10)
"""Maximum size of a map. Agents accept messages of 16 MiB, the rest of the message included; a larger one would make
them connect again without end."""
_log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)


class ManagementService(ManagementServiceServicer):
    """`management.ManagementService`. Each process has a new key pair; peers request the public key before each call.

    Args:
        configuration: the servers that management announces to peers.
        agents: users by the identity provider's tokens; `None` if there is no provider.
        quiet: time that an agent's map waits for further changes, in seconds.
        map_bytes: maximum size of a map.
    """

    def __init__(
        self,
        state: State,
        maps: NetworkMaps,
        streams: PeerStreams,
        *,
        configuration: PeerConfiguration | None = None,
        agents: AgentLogins | None = None,
        quiet: float = QUIET_SECONDS,
        map_bytes: int = MAP_BYTES,
    ) -> None:
        self._state = state
        self._maps = maps
        self._streams = streams
        self._quiet = quiet
        clock = asyncio.get_running_loop().time
        self._logins = Buckets(clock, burst=LOGINS, per_second=1 / LOGIN_SECONDS, keys=LOGIN_KEYS)
        self._syncs = Places(STREAMS_OF_A_KEY)
        self._token_logins = Places(TOKEN_LOGINS)
        self._token_logins_of_source = Places(TOKEN_LOGINS_OF_A_SOURCE)
        self._private_key = bytes(PrivateKey.generate())
        self._public_key = format_key(bytes(PrivateKey(self._private_key).public_key))
        self._configuration = configuration or PeerConfiguration()
        self._agents = agents
        self._map_bytes = map_bytes

    async def GetServerKey(self, request: Empty, context: Any) -> ServerKeyResponse:  # noqa: N802
        return ServerKeyResponse(key=self._public_key)

    async def isHealthy(self, request: Empty, context: Any) -> Empty:  # noqa: N802
        return Empty()

    async def Login(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        envelope, login = self._opened(request, LoginRequest)
        if not login.HasField("meta"):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "peer system meta has to be provided")
        user = await self._user(login.jwtToken) if login.jwtToken else None
        peer = await self._peer(request.wgPubKey, login, user)
        ssh_key = _ssh_key(login) if login.HasField("peerKeys") else None
        # Stored before the response: the peer's capabilities decide the addresses in it, and in the maps that follow.
        peer = await update_peer_meta(self._state, peer, peer_meta(login.meta), ssh_key=ssh_key)
        peer = await note_login(self._state, peer, by_user=user is not None)
        account, peer = self._current(peer.key)
        response = LoginResponse(
            netbirdConfig=self._configuration.message(),
            peerConfig=peer_config(account, peer),
            sessionExpiresAt=_expiry(peer, account.account),
        )
        return self._sealed(envelope, response)

    async def SyncMeta(self, request: EncryptedMessage, context: Any) -> Empty:  # noqa: N802
        _, report = self._opened(request, SyncMetaRequest)
        _, peer = self._current(request.wgPubKey)
        if report.HasField("meta"):
            await update_peer_meta(self._state, peer, peer_meta(report.meta))
        return Empty()

    async def Logout(self, request: EncryptedMessage, context: Any) -> Empty:  # noqa: N802
        """Deletes the peer. A peer that a service targets stays, with FAILED_PRECONDITION."""
        self._opened(request, Empty)
        match = self._state.snapshots.by_peer_key(request.wgPubKey)
        if match is None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, _NOT_REGISTERED)
        await delete_peer(self._state, match[1].account_id, match[1].id)
        return Empty()

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
            peer = await update_peer_meta(self._state, peer, peer_meta(sync.meta))
        async with self._connected(peer, call_address()) as stream:
            account, peer = self._current(peer.key)
            sent = self._response(account, peer)
            first = SyncResponse()
            first.CopyFrom(sent)
            first.netbirdConfig.CopyFrom(self._configuration.message())
            await context.write(self._sealed(envelope, first))
            stream.refresh_in(self._configuration.refresh_seconds())
            async for due in stream.changes(0 if peer.proxy is not None else self._quiet):
                if due is Due.CONFIGURATION:
                    # Without a map. A map has no configuration: agents would take one without relays as "use none".
                    refresh = SyncResponse(netbirdConfig=self._configuration.message())
                    await context.write(self._sealed(envelope, refresh))
                    stream.refresh_in(self._configuration.refresh_seconds())
                    continue
                account, peer = self._current(peer.key)
                response = self._response(account, peer)
                if peer.proxy is None and _same(response, sent):
                    continue
                # A proxy gets every map, even an equal one: it revalidates open access on each map, and access can
                # change without a change of the map.
                sent = response
                await context.write(self._sealed(envelope, sent))

    async def _user(self, token: str) -> User:
        """The user of an agent's token. Raises `Refused`, `InvalidArgument`, `PermissionDenied`."""
        if self._agents is None:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "invalid jwt token: no identity provider is set up here")
        full = self._too_many_token_logins
        try:
            # Strangers have as many keys as they like, so that limits by key do not bound what waits here.
            with (
                self._token_logins_of_source.place(source_of(call_address()), refusal=full),
                self._token_logins.place("", refusal=full),
            ):
                return await self._agents.user(token)
        except ProviderFailed as error:
            _log.warning("login.provider.failed", extra={"error": str(error)})
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the identity provider does not answer") from error

    def _too_many_token_logins(self) -> Refused:
        self._state.count("token_logins_refused")
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many logins wait for the identity provider")

    async def _peer(self, key: str, login: LoginRequest, user: User | None) -> Peer:
        """The peer that logs in: an existing one, or a new one by its user or a setup key. Raises `Refused`."""
        match = self._state.snapshots.by_peer_key(key)
        if match is None:
            return await self._new_peer(key, login, user)
        account, peer = match
        if user is not None and user.id != peer.user_id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "the peer belongs to another user")
        # A user's login is what renews an expired one; every other reason stays.
        _check(account, peer, unless=Refusal.LOGIN_EXPIRED if user is not None else None)
        if login.dnsLabels and checked_dns_labels(login.dnsLabels) != peer.extra_dns_labels:
            # Ignoring them would leave the user with names that do not resolve.
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION, "extra DNS labels are set when a peer joins, and cannot be changed"
            )
        return peer

    async def _new_peer(self, key: str, login: LoginRequest, user: User | None) -> Peer:
        meta = peer_meta(login.meta)
        named: dict[str, Any] = {"key": key, "hostname": meta.hostname, "meta": meta, "ssh_key": _ssh_key(login)}
        try:
            if user is not None:
                if login.dnsLabels:
                    raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "extra DNS labels need a setup key")
                return await enroll_by_user(self._state, user, **named)
            if login.setupKey:
                return await enroll(self._state, login.setupKey, extra_dns_labels=login.dnsLabels, **named)
        except Conflict as error:  # a concurrent login registered the same key
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, error.message) from error
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, _NOT_REGISTERED)

    async def GetDeviceAuthorizationFlow(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        return self._login_flow()

    async def GetPKCEAuthorizationFlow(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        return self._login_flow()

    def _login_flow(self) -> EncryptedMessage:
        """Refuses to tell agents where their users log in: they then ask for a setup key.

        The form of the answer is not known, so a provider that is set up does not help. An agent that has a token
        of the provider by other means logs in with it.
        """
        if self._agents is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no identity provider is set up here")
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this management does not tell agents of its identity provider")

    def _current(self, key: str) -> tuple[AccountSnapshot, Peer]:
        match = self._state.snapshots.by_peer_key(key)
        if match is None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, _NOT_REGISTERED)
        _check(*match)
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

    def _response(self, account: AccountSnapshot, peer: Peer) -> SyncResponse:
        """A message with the peer's map. Raises `Refused` if it is larger than agents accept."""
        network_map = self._maps.of(account, peer)
        if network_map.ByteSize() > self._map_bytes:
            self._state.count("peer_maps_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the network map is larger than agents accept")
        return SyncResponse(
            peerConfig=peer_config(account, peer),
            remotePeersIsEmpty=network_map.remotePeersIsEmpty,
            NetworkMap=network_map,
            sessionExpiresAt=_expiry(peer, account.account),
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


def refusal_of(account: AccountSnapshot, peer: Peer) -> Refused | None:
    """The status for a peer that is not admitted; `None` for one that is."""
    reason = peer_refusal(peer, account)
    return None if reason is None else Refused(grpc.StatusCode.PERMISSION_DENIED, _REFUSALS.get(reason, _BLOCKED))


def _check(account: AccountSnapshot, peer: Peer, *, unless: Refusal | None = None) -> None:
    refused = refusal_of(account, peer)
    if refused is not None and peer_refusal(peer, account) is not unless:
        raise refused


def _ssh_key(login: LoginRequest) -> str:
    return login.peerKeys.sshPubKey.decode("utf-8", "replace")[:4096]


def _expiry(peer: Peer, account: Account) -> Timestamp:
    """The time at which the peer's login expires, as agents read it: zero for never."""
    expires, moment = login_expires_at(peer, account), Timestamp()
    if expires is not None:
        moment.FromDatetime(expires)
    return moment


def _same(first: SyncResponse, second: SyncResponse) -> bool:
    """True if two messages differ at most in the serial of their maps."""
    copy = SyncResponse()
    copy.CopyFrom(first)
    copy.NetworkMap.Serial = second.NetworkMap.Serial
    return copy == second
