"""A client of one TURN server (RFC 8656): one allocation, its permissions and channels.

No socket, clock or randomness of its own. The server is not trusted: it cannot make this client send to another
address than itself, cannot name a special address as ours or as a sender's, and cannot make it work faster than its
bounds. A flood of the server costs one parse a datagram and leaves nothing behind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.stun.encoding import BadStun
from netbird_overlay.stun.turn_messages import (
    MAX_ATTRIBUTE_BYTES,
    UDP_TRANSPORT,
    Attribute,
    Class,
    Credentials,
    Method,
    TurnMessage,
    channel_data,
    encode_turn,
    is_channel_data,
    long_term_key,
    parse_channel_data,
    parse_turn,
    peer_address,
)
from netbird_overlay.stun.turn_tables import CHANNEL_SECONDS, PERMISSION_SECONDS, Grant, Grants

MAX_PERMISSIONS, MAX_CHANNELS = 128, 128
MAX_TRANSACTIONS: Final = 64
MAX_TRANSMITS: Final = 512
MAX_CHALLENGES: Final = 3
"""Most new nonces and realms that one request follows."""
FIRST_CHANNEL: Final = 0x4000
LEAST_REFRESH: Final = 30.0
"""Shortest time between two refreshes, whatever lifetime the server names."""
LONGEST_LIFETIME: Final = 3600
_SENDINGS: Final = (0.0, 0.5, 1.5, 3.5)
_GIVE_UP: Final = 7.5
"""Seconds from a request to its repetitions, and until it counts as unanswered."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """The server relays for us at this address."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Ended:
    """No allocation came, or it is gone; the client does nothing any more. `reason` is for people."""

    reason: str


@dataclass(slots=True)
class _Request:
    method: Method
    attributes: Mapping[Attribute, bytes]
    target: Endpoint | None
    began: float
    sent: int = 0
    challenges: int = 0
    datagram: bytes = field(default=b"", repr=False)

    @property
    def due(self) -> float:
        return self.began + (_SENDINGS[self.sent] if self.sent < len(_SENDINGS) else _GIVE_UP)


class TurnClient:
    """An allocation. The caller sends the bytes of `transmits` to the server and passes its bytes to `receive`.

    Args:
        user, password: long-term credentials, such as those that management makes for a time.
        random: `random(n)` returns n unpredictable bytes.
        usable: returns True for an address that a relay may have, and that a datagram may come from.
        reliable: the connection is a stream, so nothing is repeated.

    Attributes:
        counters: what was dropped, by reason.
        relayed: our address at the server, or None.
    """

    def __init__(
        self,
        user: str,
        password: str,
        *,
        random: Callable[[int], bytes],
        usable: Callable[[Endpoint], bool],
        now: float,
        reliable: bool = False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.relayed: Endpoint | None = None
        self._user, self._password = user, password
        self._random, self._usable, self._reliable = random, usable, reliable
        self._credentials: Credentials | None = None
        self._requests: dict[bytes, _Request] = {}
        self._permissions: Grants[str] = Grants(MAX_PERMISSIONS)
        self._channels: Grants[Endpoint] = Grants(MAX_CHANNELS)
        self._by_number: dict[int, Endpoint] = {}
        self._refresh_at = self._expires_at = math.inf
        self._over = False
        self._transmits: list[bytes] = []
        self._events: list[Allocated | Ended] = []
        self._ask(Method.ALLOCATE, {Attribute.REQUESTED_TRANSPORT: UDP_TRANSPORT}, None, now)

    # Sending -----------------------------------------------------------------------------------------------------

    def send(self, payload: bytes, endpoint: Endpoint, now: float, *, channel: bool = False) -> bool:
        """Send a datagram from the relayed address. False if it was dropped, as it is before there is a permission.

        Args:
            channel: more will follow to this endpoint, so that a channel saves 32 bytes in each datagram.
        """
        if self.relayed is None or self._over:
            return self._drop("without_allocation")
        permission = self._permissions.use(endpoint.host, now)
        if permission is None:
            return self._drop("permissions_full")
        if permission.wants_request(now):
            self._ask_for(Method.CREATE_PERMISSION, permission, endpoint, now)
        if now >= permission.until:
            return self._drop("without_permission")
        if channel and self._channel(endpoint, now) is not None:
            bound = self._channels.get(endpoint)
            if bound is not None and now < bound.until:
                return self._transmit(channel_data(bound.number, payload))
        transaction = self._random(12)
        attributes = {Attribute.XOR_PEER_ADDRESS: peer_address(endpoint, transaction), Attribute.DATA: payload}
        return self._transmit(encode_turn(Method.SEND, Class.INDICATION, transaction, attributes))

    def _channel(self, endpoint: Endpoint, now: float) -> Grant | None:
        grant = self._channels.use(endpoint, now)
        if grant is None:
            self.counters["channels_full"] += 1
            return None
        if not grant.number:
            self._by_number = {number: each for number, each in self._by_number.items() if self._channels.get(each)}
            grant.number = next(n for n in range(FIRST_CHANNEL, 0x5000) if n not in self._by_number)
            self._by_number[grant.number] = endpoint
        if grant.wants_request(now):
            self._ask_for(Method.CHANNEL_BIND, grant, endpoint, now)
        return grant

    def _ask_for(self, method: Method, grant: Grant, endpoint: Endpoint, now: float) -> None:
        if len(self._requests) >= MAX_TRANSACTIONS:
            self.counters["requests_full"] += 1
            return
        grant.asked = True
        number = {Attribute.CHANNEL_NUMBER: grant.number.to_bytes(2) + bytes(2)} if grant.number else {}
        self._ask(method, number, endpoint, now)

    def _drop(self, reason: str) -> bool:
        self.counters[reason] += 1
        return False

    def _transmit(self, datagram: bytes) -> bool:
        if len(self._transmits) >= MAX_TRANSMITS:
            return self._drop("transmits_dropped")
        self._transmits.append(datagram)
        return True

    # Requests ----------------------------------------------------------------------------------------------------

    def _ask(
        self, method: Method, attributes: Mapping[Attribute, bytes], target: Endpoint | None, now: float, tries: int = 0
    ) -> None:
        """Begin a request; one about `target` names that address."""
        transaction = self._random(12)
        values = dict(attributes)
        if target is not None:
            values[Attribute.XOR_PEER_ADDRESS] = peer_address(target, transaction)
        request = _Request(method, attributes, target, now, challenges=tries)
        request.datagram = encode_turn(method, Class.REQUEST, transaction, values, self._credentials)
        self._requests[transaction] = request
        self._advance_request(transaction, request, now)

    def _advance_request(self, transaction: bytes, request: _Request, now: float) -> None:
        if request.due > now:
            return
        if request.sent == len(_SENDINGS):
            del self._requests[transaction]
            self._failed(request, "no answer", now)
            return
        request.sent = len(_SENDINGS) if self._reliable else request.sent + 1
        self._transmit(request.datagram)

    def _failed(self, request: _Request, reason: str, now: float) -> None:
        match request.method:
            case Method.CREATE_PERMISSION | Method.CHANNEL_BIND:
                self.counters["grants_refused"] += 1
                if (grant := self._grant(request)) is not None:
                    grant.refused(now)
            case Method.REFRESH if now < self._expires_at and reason == "no answer":
                self._refresh_at = now + LEAST_REFRESH
            case _:
                self._end(f"{request.method.name.lower()}: {reason}")

    def _grant(self, request: _Request) -> Grant | None:
        if request.target is None:
            return None
        if request.method is Method.CHANNEL_BIND:
            return self._channels.get(request.target)
        return self._permissions.get(request.target.host)

    def _end(self, reason: str) -> None:
        if not self._over:
            self._over, self.relayed = True, None
            self._requests.clear()
            self._events.append(Ended(reason))

    # Receiving ---------------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, now: float) -> tuple[bytes, Endpoint] | None:
        """Take a datagram of the server. Returns payload and sender if it carries a relayed datagram that may pass."""
        if self._over:
            return None
        try:
            if is_channel_data(datagram):
                return self._on_channel(*parse_channel_data(datagram), now)
            message = parse_turn(datagram)
            if message.kind is Class.INDICATION:
                if message.method is not Method.DATA:
                    raise BadStun("an indication that servers do not send")
                return self._arrived(
                    message.attributes.get(Attribute.DATA, b""), message.endpoint(Attribute.XOR_PEER_ADDRESS), now
                )
            self._on_answer(message, now)
        except BadStun:
            self.counters["malformed"] += 1
        return None

    def _on_channel(self, number: int, payload: bytes, now: float) -> tuple[bytes, Endpoint] | None:
        endpoint = self._by_number.get(number)
        if endpoint is None or not self._channels.is_live(endpoint, now):
            self.counters["unknown_channels"] += 1
            return None
        return self._arrived(payload, endpoint, now)

    def _arrived(self, payload: bytes, source: Endpoint, now: float) -> tuple[bytes, Endpoint] | None:
        """A server may pass on only what comes from where we sent to, and from no special address."""
        if not self._permissions.is_live(source.host, now) or not self._usable(source):
            self.counters["strangers"] += 1
            return None
        return payload, source

    def _on_answer(self, answer: TurnMessage, now: float) -> None:
        request = self._requests.get(answer.transaction)
        if request is None or answer.method is not request.method or answer.kind is Class.REQUEST:
            self.counters["of_no_request"] += 1
            return
        if answer.kind is Class.ERROR:
            code, reason = answer.error()
            del self._requests[answer.transaction]
            self._on_error(answer, request, f"{code} {reason}".strip(), code, now)
            return
        if self._credentials is None or not answer.is_from(self._credentials.key):
            self.counters["unauthenticated"] += 1
            return
        del self._requests[answer.transaction]
        match request.method:
            case Method.ALLOCATE:
                self._on_allocated(answer, now)
            case Method.REFRESH:
                self._set_lifetime(answer, now)
            case _:
                if (grant := self._grant(request)) is not None:
                    is_channel = request.method is Method.CHANNEL_BIND
                    grant.granted(now, CHANNEL_SECONDS if is_channel else PERMISSION_SECONDS)

    def _on_error(self, answer: TurnMessage, request: _Request, reason: str, code: int, now: float) -> None:
        """Follow a challenge (401 without credentials, 438), a few times; all else ends the request."""
        follows = (code == 401 and self._credentials is None) or (code == 438 and self._credentials is not None)
        nonce = answer.attributes.get(Attribute.NONCE, b"")
        realm = answer.attributes.get(Attribute.REALM, self._credentials.realm if self._credentials else b"")
        if not follows or request.challenges >= MAX_CHALLENGES:
            self._failed(request, reason, now)
        elif not nonce or not realm or max(len(nonce), len(realm)) > MAX_ATTRIBUTE_BYTES:
            self._failed(request, f"{reason}, without realm or nonce", now)
        else:
            key = long_term_key(self._user, realm, self._password)
            self._credentials = Credentials(self._user, realm, nonce, key)
            self._ask(request.method, request.attributes, request.target, now, request.challenges + 1)

    def _on_allocated(self, answer: TurnMessage, now: float) -> None:
        try:
            endpoint = answer.endpoint(Attribute.XOR_RELAYED_ADDRESS)
            self._set_lifetime(answer, now)
        except BadStun as exc:
            self._end(f"allocate: {exc}")
            return
        if not self._usable(endpoint):
            self._give_back(now)
            self._end(f"allocate: the server relays at {endpoint.host}, a special address")
            return
        self.relayed = endpoint
        self._events.append(Allocated(endpoint))

    def _set_lifetime(self, answer: TurnMessage, now: float) -> None:
        seconds = min(answer.lifetime(), LONGEST_LIFETIME)
        self._expires_at = now + seconds
        self._refresh_at = now + max(LEAST_REFRESH, seconds * 0.75)

    # Time --------------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """Time of the next `advance`; infinite after the end. Permissions and channels are renewed as they are used."""
        if self._over:
            return math.inf
        return min(self._refresh_at, self._expires_at, *(request.due for request in self._requests.values()))

    def advance(self, now: float) -> None:
        """Repeat and give up what is due."""
        for transaction, request in list(self._requests.items()):
            if not self._over:
                self._advance_request(transaction, request, now)
        if self._over:
            return
        if now >= self._expires_at:
            self._end("the allocation expired")
        elif now >= self._refresh_at:
            self._refresh_at = math.inf
            self._ask(Method.REFRESH, {Attribute.LIFETIME: (600).to_bytes(4)}, None, now)

    def release(self, now: float) -> None:
        """Give the allocation back. The request is sent once, and nothing waits for its answer."""
        if not self._over:
            self._give_back(now)
        self._over, self.relayed = True, None
        self._requests.clear()

    def _give_back(self, now: float) -> None:
        if self._credentials is not None:
            self._ask(Method.REFRESH, {Attribute.LIFETIME: bytes(4)}, None, now)

    def transmits(self) -> list[bytes]:
        """Return and forget the datagrams for the server."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def events(self) -> list[Allocated | Ended]:
        """Return and forget what happened."""
        events, self._events = self._events, []
        return events
