"""The conversation with one relay, sans-IO: authentication, health, subscriptions, and datagrams by peer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from netbird_wire.relay import (
    CLIENT_AUTH_TIMEOUT,
    CLIENT_HEALTH_TIMEOUT,
    HEALTH_CHECK_MESSAGE,
    PAYLOAD_AT,
    TRANSPORT_PREFIX,
    Auth,
    AuthResponse,
    BadRelayMessage,
    Close,
    PeersOffline,
    PeersOnline,
    Subscribe,
    Unsubscribe,
    chunks,
    decode,
    encode,
)
from netbird_wire.relay_tokens import RelayToken

MAX_EARLY: Final = 64
"""Maximum number of messages kept until the answer to Auth: the relay may send those of a quick peer first."""


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The relay accepted us. `instance_url` is its own name, which peers use to meet us there."""

    instance_url: str


@dataclass(frozen=True, slots=True)
class Datagrams:
    """Datagrams of one peer, in order. `peer` is its relay id."""

    peer: bytes
    payloads: list[bytes]


@dataclass(frozen=True, slots=True)
class Ended:
    """The conversation is over; the connection must be closed."""

    reason: str


Event = Authenticated | Datagrams | PeersOnline | PeersOffline | Ended


class Session:
    """One conversation, from the open WebSocket to its end. `take` returns the messages to send, Auth first.

    Attributes:
        deadline: time at which `advance` must be called, in seconds on the clock of `now`.
        malformed: number of messages that were ignored, because they are none or not a client's to receive.
    """

    def __init__(self, own_id: bytes, token: RelayToken, now: float) -> None:
        """Raises BadRelayMessage if the token is too long to be sent."""
        self._outgoing: list[bytes] = [encode(Auth(own_id, token))]
        self._early: list[bytes] = []
        self._authenticated = False
        self._ended = False
        self.deadline = now + CLIENT_AUTH_TIMEOUT
        self.malformed = 0

    def take(self) -> list[bytes]:
        """The messages to send now, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def receive(self, messages: Sequence[bytes], now: float) -> list[Event]:
        """Take the messages of one read. Datagrams that follow each other and have the same sender share an event."""
        events: list[Event] = []
        for message in messages:
            if self._ended:
                break
            if message[:2] == TRANSPORT_PREFIX and len(message) >= PAYLOAD_AT:
                if self._authenticated:
                    self._transport(message, events)
                else:
                    self._keep(message)
            else:
                self._control(message, now, events)
        return events

    def advance(self, now: float) -> list[Event]:
        """Judge the time. Returns an Ended if the relay's answer or its health check is overdue."""
        if self._ended or now < self.deadline:
            return []
        what = "no health check" if self._authenticated else "no answer to Auth"
        return [self._end(f"{what} in time")]

    def subscribe(self, peers: Iterable[bytes]) -> None:
        self._outgoing += (encode(Subscribe(piece)) for piece in chunks(list(peers)))

    def unsubscribe(self, peers: Iterable[bytes]) -> None:
        self._outgoing += (encode(Unsubscribe(piece)) for piece in chunks(list(peers)))

    def _transport(self, message: bytes, events: list[Event]) -> None:
        peer = message[2:PAYLOAD_AT]
        last = events[-1] if events else None
        if isinstance(last, Datagrams) and last.peer == peer:
            last.payloads.append(message[PAYLOAD_AT:])
        else:
            events.append(Datagrams(peer, [message[PAYLOAD_AT:]]))

    def _keep(self, message: bytes) -> None:
        if len(self._early) < MAX_EARLY:
            self._early.append(message)

    def _control(self, data: bytes, now: float, events: list[Event]) -> None:
        if data == HEALTH_CHECK_MESSAGE:
            self._outgoing.append(HEALTH_CHECK_MESSAGE)
            if self._authenticated:
                self.deadline = now + CLIENT_HEALTH_TIMEOUT
            return
        try:
            message = decode(data)
        except BadRelayMessage:
            self.malformed += 1
            return
        match message:
            case AuthResponse(instance_url) if not self._authenticated:
                self._authenticated = True
                self.deadline = now + CLIENT_HEALTH_TIMEOUT
                events.append(Authenticated(instance_url))
                early, self._early = self._early, []
                for kept in early:
                    self._transport(kept, events)
            case PeersOnline() | PeersOffline() if self._authenticated:
                events.append(message)
            case Close():
                events.append(self._end("the relay closed the connection"))
            case _:
                self.malformed += 1

    def _end(self, reason: str) -> Ended:
        self._ended = True
        return Ended(reason)
