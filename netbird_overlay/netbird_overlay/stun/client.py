"""A client of STUN servers. It owns no socket, clock or randomness: all three are its caller's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.stun.encoding import BadStun
from netbird_overlay.stun.messages import Kind, Message, encode, parse

FRESH_SECONDS: Final = 25.0
"""Time for which an answer counts, as NetBird's agents keep it: a NAT's mapping lives 30 s or more."""
MAX_SERVERS: Final = 16
_SENDINGS: Final = (0.0, 0.5, 1.5, 3.5)
"""Seconds from the first request to each repetition (RFC 8489 §6.2.1, cut at the time that gathering may take)."""
_GIVE_UP: Final = 5.0


@dataclass(frozen=True, slots=True)
class Mapped:
    """A server answered: it sees this socket as `endpoint`."""

    server: Endpoint
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A server refused, or sent no answer within 5 s."""

    server: Endpoint


@dataclass(slots=True)
class _Query:
    transaction: bytes
    began: float
    sent: int = 0

    @property
    def due(self) -> float:
        return self.began + (_SENDINGS[self.sent] if self.sent < len(_SENDINGS) else _GIVE_UP)


class StunClient:
    """Asks STUN servers for the address under which the outside sees one socket.

    The datagrams of `transmits` must leave from that socket. `random(n)` returns n unpredictable bytes.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.counters: Counter[str] = Counter()
        self._random = random
        self._queries: dict[Endpoint, _Query] = {}
        self._answers: dict[Endpoint, tuple[float, Endpoint]] = {}
        self._transmits: list[tuple[bytes, Endpoint]] = []
        self._events: list[Mapped | Unanswered] = []

    def query(self, servers: Iterable[Endpoint], now: float) -> None:
        """Ask each server without a fresh answer, unless a query to it runs. At most 16 run; the rest are left out."""
        self._expire(now)
        for server in servers:
            if server in self._queries or server in self._answers:
                continue
            if len(self._queries) + len(self._answers) >= MAX_SERVERS:
                self.counters["servers_left_out"] += 1
                continue
            self._queries[server] = _Query(self._random(12), now)
        self.advance(now)

    @property
    def pending(self) -> bool:
        """True while an answer may still come."""
        return bool(self._queries)

    def reflexive(self, now: float) -> list[Endpoint]:
        """Return the addresses of this socket in fresh answers, each once."""
        self._expire(now)
        return list(dict.fromkeys(endpoint for _, endpoint in self._answers.values()))

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> bool:
        """Take a datagram. False if it answers no query of this client, so that another may look at it."""
        try:
            message = parse(datagram)
        except BadStun:
            return False
        server = next((each for each, query in self._queries.items() if query.transaction == message.transaction), None)
        if server is None or message.kind not in (Kind.SUCCESS, Kind.ERROR):
            return False
        if source != server:
            self.counters["answers_from_elsewhere"] += 1
            return True
        del self._queries[server]
        if message.kind is Kind.SUCCESS and message.mapped is not None and message.mapped.port:
            self._answers[server] = now, message.mapped
            self._events.append(Mapped(server, message.mapped))
        else:
            self._events.append(Unanswered(server))
        return True

    @property
    def deadline(self) -> float:
        """Time of the next `advance`, infinite without a query."""
        return min((query.due for query in self._queries.values()), default=math.inf)

    def advance(self, now: float) -> None:
        for server, query in list(self._queries.items()):
            if query.due > now:
                continue
            if query.sent == len(_SENDINGS):
                del self._queries[server]
                self._events.append(Unanswered(server))
                continue
            self._transmits.append((encode(Message(Kind.REQUEST, query.transaction)), server))
            query.sent += 1

    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        """Return and forget the datagrams to send."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def events(self) -> list[Mapped | Unanswered]:
        """Return and forget the answers and failures."""
        events, self._events = self._events, []
        return events

    def _expire(self, now: float) -> None:
        for server, (at, _) in list(self._answers.items()):
            if now - at >= FRESH_SECONDS:
                del self._answers[server]
