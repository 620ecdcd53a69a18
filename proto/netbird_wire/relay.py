"""The messages between a peer and a relay, and the ids under which relays know peers.

A relay carries WireGuard datagrams between peers without a direct path. Each message is one binary WebSocket message:
a version byte, a type byte and a body, whose length the WebSocket frame states. Integers and floats are never sent.

`encode` and `decode` are inverse: `decode(encode(message)) == message`, and `encode(decode(data)) == data`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from netbird_wire.envelope import format_key
from netbird_wire.relay_tokens import BadToken, RelayToken

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 8820
"""Maximum size of a whole message."""
MAX_AUTH_BYTES: Final = 212
MAX_AUTH_RESPONSE_BYTES: Final = 8192
MAX_IDS: Final = 244
"""Maximum number of peer ids in one list."""
PEER_ID_BYTES: Final = 36
MAX_PAYLOAD_BYTES: Final = MAX_MESSAGE_BYTES - 2 - PEER_ID_BYTES

HEALTH_INTERVAL: Final = 25.0
"""Seconds between two health checks of a relay."""
SERVER_HEALTH_TIMEOUT: Final = 45.0
"""Seconds without an answer after which a relay closes the connection."""
CLIENT_HEALTH_TIMEOUT: Final = 35.0
"""Seconds without a health check after which a peer closes the connection."""
SERVER_AUTH_TIMEOUT: Final = 10.0
CLIENT_AUTH_TIMEOUT: Final = 8.0

TRANSPORT: Final = 3
CLOSE: Final = 4
HEALTH_CHECK: Final = 5
AUTH: Final = 6
AUTH_RESPONSE: Final = 7
SUBSCRIBE: Final = 8
UNSUBSCRIBE: Final = 9
PEERS_ONLINE: Final = 10
PEERS_OFFLINE: Final = 11

TRANSPORT_PREFIX: Final = bytes((VERSION, TRANSPORT))
"""Begin of a Transport message; the peer id and the datagram follow."""
PAYLOAD_AT: Final = 2 + PEER_ID_BYTES
"""Offset of the datagram in a Transport message."""
HEALTH_CHECK_MESSAGE: Final = bytes((VERSION, HEALTH_CHECK))
CLOSE_MESSAGE: Final = bytes((VERSION, CLOSE))

_MAGIC: Final = bytes.fromhex("2112a442")


class BadRelayMessage(ValueError):
    """Bytes are not a relay message, or a message cannot be encoded. The text quotes no token."""


@lru_cache(maxsize=4096)
def peer_id(key: bytes) -> bytes:
    """The id under which relays know a peer: 36 bytes, from the base64 text of its public key (32 bytes)."""
    return b"sha-" + hashlib.sha256(format_key(key).encode("ascii")).digest()


@dataclass(frozen=True, slots=True)
class Transport:
    """One datagram. `peer` is the id of the receiver towards the relay, and of the sender from it."""

    peer: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The sender is about to close the connection."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Sent by the relay every 25 s; the peer returns it at once."""


@dataclass(frozen=True, slots=True)
class Auth:
    """First message of a peer: its own id and a token."""

    peer: bytes
    token: RelayToken


@dataclass(frozen=True, slots=True)
class AuthResponse:
    """Answer to a valid Auth: the URL of this instance, which may differ from the one that the peer dialed."""

    instance_url: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Ask for the peers' presence: PeersOnline once for each that is or becomes connected, PeersOffline afterwards."""

    peers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """End a subscription."""

    peers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PeersOnline:
    """Subscribed peers that are connected. Sent once for each subscription."""

    peers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PeersOffline:
    """Subscribed peers that have disconnected."""

    peers: tuple[bytes, ...]


PeerList = Subscribe | Unsubscribe | PeersOnline | PeersOffline
Message = Transport | Close | HealthCheck | Auth | AuthResponse | PeerList

_LISTS: Final[dict[int, type[Subscribe | Unsubscribe | PeersOnline | PeersOffline]]] = {
    SUBSCRIBE: Subscribe,
    UNSUBSCRIBE: Unsubscribe,
    PEERS_ONLINE: PeersOnline,
    PEERS_OFFLINE: PeersOffline,
}
_LIST_TYPES: Final = {kind: number for number, kind in _LISTS.items()}


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises BadRelayMessage if it exceeds a bound, or holds an id that is not 36 bytes."""
    match message:
        case Transport(peer, payload):
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise BadRelayMessage(f"a datagram has at most {MAX_PAYLOAD_BYTES} bytes, this has {len(payload)}")
            return TRANSPORT_PREFIX + _checked_id(peer) + payload
        case HealthCheck():
            return HEALTH_CHECK_MESSAGE
        case Close():
            return CLOSE_MESSAGE
        case Auth(peer, token):
            try:
                data = bytes((VERSION, AUTH)) + _MAGIC + _checked_id(peer) + token.encode()
            except BadToken as exc:
                raise BadRelayMessage(str(exc)) from exc
            if len(data) > MAX_AUTH_BYTES:
                raise BadRelayMessage(f"an Auth has at most {MAX_AUTH_BYTES} bytes, this has {len(data)}")
            return data
        case AuthResponse(instance_url):
            return bytes((VERSION, AUTH_RESPONSE)) + _checked_url(instance_url)
        case Subscribe() | Unsubscribe() | PeersOnline() | PeersOffline():
            if len(message.peers) > MAX_IDS:
                raise BadRelayMessage(f"a list has at most {MAX_IDS} ids, this has {len(message.peers)}")
            return bytes((VERSION, _LIST_TYPES[type(message)])) + b"".join(map(_checked_id, message.peers))


def decode(data: bytes) -> Message:
    """The message in these bytes. Raises BadRelayMessage: another version or type, or a body that does not fit it."""
    if not 2 <= len(data) <= MAX_MESSAGE_BYTES:
        raise BadRelayMessage(f"a message has 2 to {MAX_MESSAGE_BYTES} bytes, this has {len(data)}")
    if data[0] != VERSION:
        raise BadRelayMessage(f"version {data[0]} is not supported")
    kind = data[1]
    if kind == TRANSPORT:
        if len(data) < PAYLOAD_AT:
            raise BadRelayMessage("a Transport is too short for its peer id")
        return Transport(bytes(data[2:PAYLOAD_AT]), bytes(data[PAYLOAD_AT:]))
    if kind in _LISTS:
        return _LISTS[kind](_ids(data))
    if kind == AUTH:
        return _auth(data)
    if kind == AUTH_RESPONSE:
        return AuthResponse(_instance_url(data))
    if kind in (HEALTH_CHECK, CLOSE):
        if len(data) != 2:
            raise BadRelayMessage(f"type {kind} has no body")
        return HealthCheck() if kind == HEALTH_CHECK else Close()
    raise BadRelayMessage(f"type {kind} is unknown")


def chunks(peers: list[bytes]) -> list[tuple[bytes, ...]]:
    """The ids in lists that fit one message each, in their order."""
    return [tuple(peers[at : at + MAX_IDS]) for at in range(0, len(peers), MAX_IDS)]


def _checked_id(peer: bytes) -> bytes:
    if len(peer) != PEER_ID_BYTES:
        raise BadRelayMessage(f"a peer id has {PEER_ID_BYTES} bytes, this has {len(peer)}")
    return peer


def _ids(data: bytes) -> tuple[bytes, ...]:
    if (len(data) - 2) % PEER_ID_BYTES or len(data) - 2 > MAX_IDS * PEER_ID_BYTES:
        raise BadRelayMessage(f"a list is at most {MAX_IDS} ids of {PEER_ID_BYTES} bytes")
    return tuple(bytes(data[at : at + PEER_ID_BYTES]) for at in range(2, len(data), PEER_ID_BYTES))


def _auth(data: bytes) -> Auth:
    if len(data) > MAX_AUTH_BYTES:
        raise BadRelayMessage(f"an Auth has at most {MAX_AUTH_BYTES} bytes, this has {len(data)}")
    peer_at = 2 + len(_MAGIC)
    if data[2:peer_at] != _MAGIC:
        raise BadRelayMessage("an Auth lacks the magic bytes")
    token_at = peer_at + PEER_ID_BYTES
    try:
        return Auth(bytes(data[peer_at:token_at]), RelayToken.decode(bytes(data[token_at:])))
    except BadToken as exc:
        raise BadRelayMessage(str(exc)) from exc


def _checked_url(text: str) -> bytes:
    if not text or not text.isascii() or not text.isprintable() or len(text) + 2 > MAX_AUTH_RESPONSE_BYTES:
        raise BadRelayMessage(f"an instance URL is printable ASCII of at most {MAX_AUTH_RESPONSE_BYTES - 2} bytes")
    return text.encode("ascii")


def _instance_url(data: bytes) -> str:
    text = bytes(data[2:]).decode("latin-1")
    _checked_url(text)
    return text
