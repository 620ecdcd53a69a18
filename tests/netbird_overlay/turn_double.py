"""A TURN server for tests, sans-IO, whose answers a test can replace: lies, stalls and floods."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.stun.turn_messages import (
    Attribute,
    Class,
    Credentials,
    Method,
    TurnMessage,
    channel_data,
    encode_turn,
    is_channel_data,
    parse_channel_data,
    parse_turn,
    peer_address,
)

REALM, USER, PASSWORD = b"example", "1999999999:proxy", "secret"
RELAYED = Endpoint("203.0.113.7", 50000)


def key(password: str = PASSWORD) -> bytes:
    """The key as RFC 8489 §9.2.2 writes it, without the code under test."""
    return hashlib.md5(f"{USER}:example:{password}".encode(), usedforsecurity=False).digest()


class TurnDouble:
    """An allocation for a single client.

    Attributes:
        seen: the requests and indications of the client, in order.
        relayed_out: what the client sent to peers: payload, peer, and whether by a channel.
        answer: returns the datagrams that answer a request; a test replaces it to lie.
        lifetime, relayed, nonce: what answers name. A request with another nonce gets 438.
        allowed, channels: what the client was granted.
    """

    def __init__(self) -> None:
        self.seen: list[TurnMessage] = []
        self.relayed_out: list[tuple[bytes, Endpoint, bool]] = []
        self.answer: Callable[[TurnMessage], Sequence[bytes]] = self.honest
        self.lifetime, self.relayed, self.nonce = 600, RELAYED, b"n1"
        self.allowed: set[str] = set()
        self.channels: dict[int, Endpoint] = {}

    def of(self, method: Method) -> list[TurnMessage]:
        return [message for message in self.seen if message.method is method]

    def receive(self, datagram: bytes) -> Sequence[bytes]:
        """Return the answers to a datagram of the client."""
        if is_channel_data(datagram):
            number, payload = parse_channel_data(datagram)
            self.relayed_out.append((payload, self.channels[number], True))
            return []
        message = parse_turn(datagram)
        self.seen.append(message)
        if message.method is Method.SEND:
            peer = message.endpoint(Attribute.XOR_PEER_ADDRESS)
            if peer.host in self.allowed:
                self.relayed_out.append((message.attributes[Attribute.DATA], peer, False))
            return []
        return self.answer(message)

    def honest(self, message: TurnMessage) -> Sequence[bytes]:
        if not message.digest:
            return [self.error(message, 401, "Unauthorized")]
        if not message.is_from(key()):
            return [self.error(message, 401, "Unauthorized")]
        if message.attributes[Attribute.NONCE] != self.nonce:
            return [self.error(message, 438, "Stale Nonce")]
        match message.method:
            case Method.CREATE_PERMISSION:
                self.allowed.add(message.endpoint(Attribute.XOR_PEER_ADDRESS).host)
            case Method.CHANNEL_BIND:
                number = int.from_bytes(message.attributes[Attribute.CHANNEL_NUMBER][:2])
                self.channels[number] = message.endpoint(Attribute.XOR_PEER_ADDRESS)
        return [self.success(message)]

    def success(self, message: TurnMessage, *, password: str = PASSWORD) -> bytes:
        attributes: dict[Attribute, bytes] = {}
        if message.method in (Method.ALLOCATE, Method.REFRESH):
            attributes[Attribute.LIFETIME] = self.lifetime.to_bytes(4)
        if message.method is Method.ALLOCATE:
            attributes[Attribute.XOR_RELAYED_ADDRESS] = peer_address(self.relayed, message.transaction)
        credentials = Credentials(USER, REALM, self.nonce, key(password))
        return encode_turn(message.method, Class.SUCCESS, message.transaction, attributes, credentials)

    def error(self, message: TurnMessage, code: int, reason: str = "", *, nonce: bytes | None = None) -> bytes:
        attributes = {
            Attribute.ERROR_CODE: bytes((0, 0, code // 100, code % 100)) + reason.encode(),
            Attribute.REALM: REALM,
            Attribute.NONCE: self.nonce if nonce is None else nonce,
        }
        return encode_turn(message.method, Class.ERROR, message.transaction, attributes)

    def data(self, payload: bytes, peer: Endpoint) -> bytes:
        """An indication that brings a datagram of a peer."""
        transaction = bytes(12)
        attributes = {Attribute.XOR_PEER_ADDRESS: peer_address(peer, transaction), Attribute.DATA: payload}
        return encode_turn(Method.DATA, Class.INDICATION, transaction, attributes)

    def by_channel(self, payload: bytes, peer: Endpoint) -> bytes:
        return channel_data(next(number for number, each in self.channels.items() if each == peer), payload)
