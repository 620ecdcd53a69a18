"""The relay's side of one connection, sans-IO: authentication, health, and the judgement of each message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netbird_relay.hub import Hub, Peer, Sink
from netbird_wire.relay import (
    HEALTH_CHECK_MESSAGE,
    HEALTH_INTERVAL,
    MAX_AUTH_BYTES,
    PAYLOAD_AT,
    SERVER_AUTH_TIMEOUT,
    SERVER_HEALTH_TIMEOUT,
    TRANSPORT_PREFIX,
    Auth,
    AuthResponse,
    BadRelayMessage,
    Close,
    Subscribe,
    Unsubscribe,
    decode,
    encode,
)


@dataclass(frozen=True, slots=True)
class Identity:
    """The relay towards its peers.

    Attributes:
        secret: shared with management, which makes the tokens, and with the deployment's other relays.
        instance_url: the URL at which peers of other relays reach this one.
    """

    secret: str
    instance_url: str

    def __repr__(self) -> str:
        return f"Identity(***, {self.instance_url!r})"


class Conversation:
    """One connection, from the open WebSocket to its end.

    Attributes:
        peer: None until a valid Auth.
        source: the client's group of addresses.
        deadline: time at which `advance` must be called.
        ids: number of peer ids in subscriptions since the caller last set it to 0.
        ended: "" until the connection must be closed, then the counter's name.
    """

    def __init__(self, hub: Hub, identity: Identity, sink: Sink, now: float, source: str = "") -> None:
        """`source` is the client's group of addresses; `now`, here and below, is in seconds on one clock."""
        self._hub = hub
        self.source = source
        self._identity = identity
        self._sink = sink
        self._answered = self._asked = now
        self.peer: Peer | None = None
        self.deadline = now + SERVER_AUTH_TIMEOUT
        self.ids = 0
        self.ended = ""

    def receive(self, messages: Sequence[bytes], now: float, unix_now: float) -> None:
        """Take the messages of one read. `unix_now` judges the token's expiry."""
        for message in messages:
            if self.ended:
                return
            peer = self.peer
            if peer is None:
                self._authenticate(message, now, unix_now)
            elif message[:2] == TRANSPORT_PREFIX and len(message) >= PAYLOAD_AT:
                receiver = self._hub.peers.get(message[2:PAYLOAD_AT])
                if receiver is None:
                    self._hub.counters["unknown_destination"] += 1
                else:
                    receiver.sink.forward(peer.id, peer.prefix, message[PAYLOAD_AT:])
            elif message == HEALTH_CHECK_MESSAGE:
                self._answered = now
            else:
                self._control(peer, message)

    def advance(self, now: float) -> None:
        """Ask for the peer's health, or end the connection, when it is time."""
        if self.ended or now < self.deadline:
            return
        if self.peer is None:
            self.ended = "auth_late"
            return
        if now >= self._answered + SERVER_HEALTH_TIMEOUT:
            self.ended = "health_late"
            return
        if now >= self._asked + HEALTH_INTERVAL:
            self._asked = now
            self._sink.control(HEALTH_CHECK_MESSAGE)
        self.deadline = min(self._asked + HEALTH_INTERVAL, self._answered + SERVER_HEALTH_TIMEOUT)

    def leave(self) -> None:
        """The connection is gone."""
        self.ended = self.ended or "left"
        if self.peer is not None:
            self._hub.leave(self.peer)

    def _authenticate(self, data: bytes, now: float, unix_now: float) -> None:
        try:
            auth = decode(data) if len(data) <= MAX_AUTH_BYTES else None
        except BadRelayMessage:
            auth = None
        if not isinstance(auth, Auth):
            self.ended = "unauthenticated_message"
        elif not auth.token.is_valid(self._identity.secret, unix_now):
            self.ended = "bad_token"
        # Before the answer, so that the first datagram of a peer that waits for this one is not lost.
        elif (peer := self._hub.enter(auth.peer, self._sink, self.source, now)) is None:
            self.ended = "takeovers_refused"
        else:
            self.peer = peer
            self._sink.control(encode(AuthResponse(self._identity.instance_url)))
            self._answered = self._asked = now
            self.deadline = now + HEALTH_INTERVAL

    def _control(self, peer: Peer, data: bytes) -> None:
        try:
            message = decode(data)
        except BadRelayMessage:
            self.ended = "malformed"
            return
        match message:
            case Subscribe(ids):
                self.ids += 1 + len(ids)
                self._hub.subscribe(peer, ids)
            case Unsubscribe(ids):
                self.ids += 1 + len(ids)
                self._hub.unsubscribe(peer, ids)
            case Close():
                self.ended = "closed"
            case _:
                self.ended = "malformed"
