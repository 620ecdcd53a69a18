"""The memory behind `explain`: the latest exchanges with their decisions, by id. Bounded."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Any

from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.model import ExchangeId

LONGEST_PATH = 2048
# Operators ask about refusals. Served exchanges and malformed requests have places of their own, so that they cannot
# displace refusals.
REFUSED_KEPT = 4096
SERVED_KEPT = 256
MALFORMED_KEPT = 256


class Decisions:
    """Remembers facts of exchanges. They are formatted only when an operator asks."""

    def __init__(
        self, *, refused: int = REFUSED_KEPT, served: int = SERVED_KEPT, malformed: int = MALFORMED_KEPT
    ) -> None:
        self._refused: deque[Remembered] = deque(maxlen=refused)
        self._served: deque[Remembered] = deque(maxlen=served)
        self._malformed: deque[Remembered] = deque(maxlen=malformed)

    def record(self, exchange: ExchangeView) -> None:
        """Remember an exchange that is over; when full, the oldest of the same kind is dropped."""
        if not exchange.host:  # malformed: any client can send any number of these
            self._malformed.append(Remembered(exchange))
            return
        served = exchange.denial is None and exchange.error is None and exchange.status < 400
        (self._served if served else self._refused).append(Remembered(exchange))

    def find(self, id_: ExchangeId) -> dict[str, Any] | None:
        """Return the story of one exchange, or None if it is not remembered."""
        for ring in (self._refused, self._served, self._malformed):
            for exchange in reversed(ring):
                if exchange.id == id_:
                    return described(exchange)
        return None

    def latest(self, count: int = 20) -> list[dict[str, Any]]:
        """Return the last refusals, newest first."""
        return [described(exchange) for exchange in list(self._refused)[: -count - 1 : -1]]

    def __len__(self) -> int:
        return len(self._refused) + len(self._served) + len(self._malformed)


class Remembered:
    """Those facts of an exchange that `explain` reports, without what a client can make large: head, query, body.

    A copy, because observers that defer their work still use the exchange.
    """

    __slots__ = (
        "cause",
        "client_address",
        "code",
        "host",
        "id",
        "identity",
        "method",
        "origin",
        "raw_path",
        "route",
        "scheme",
        "started_at",
        "status",
        "trail",
        "tries",
    )

    def __init__(self, exchange: ExchangeView) -> None:
        denial, error = exchange.denial, exchange.error
        self.id = exchange.id
        self.origin = exchange.origin
        self.method = exchange.method
        self.scheme = exchange.scheme
        self.host = exchange.host
        self.raw_path = exchange.raw_path[:LONGEST_PATH]
        self.client_address = exchange.client_address
        self.route = exchange.route
        self.identity = exchange.identity
        self.status = exchange.status
        self.started_at = exchange.started_at
        self.trail = exchange.trail
        self.tries = exchange.tries
        # Not the error itself, because its traceback refers to heads and bodies.
        self.code = denial.code if denial is not None else error.code if error is not None else ""
        self.cause = None if error is None else str(error)


def described(exchange: Remembered) -> dict[str, Any]:
    """Return an exchange as JSON for the operator, without query, header values and body."""
    origin, route, who = exchange.origin, exchange.route, exchange.identity
    story: dict[str, Any] = {
        "id": exchange.id,
        "at": datetime.fromtimestamp(exchange.started_at, UTC).isoformat(timespec="milliseconds"),
        "request": f"{exchange.method} {exchange.scheme}://{exchange.host}{exchange.raw_path.decode('latin-1')}",
        "from": {
            "listener": origin.listener if origin else "embedded",
            "account": origin.account if origin else None,
            "peer": str(origin.peer) if origin else exchange.client_address,
            "client_address": exchange.client_address,
        },
        "route": {"service": route.service, "account": route.account, "prefix": route.prefix.decode("latin-1")}
        if route
        else None,
        "identity": {
            "user": who.user_id,
            "email": who.email,
            "groups": sorted(group.label for group in who.groups),
            "method": who.method,
            "by": who.by,
        }
        if who
        else None,
        "steps": [
            {
                "stage": entry.stage,
                "plugin": entry.plugin,
                "verdict": entry.verdict,
                "reason": entry.reason,
                "facts": dict(entry.facts or {}),
            }
            for entry in exchange.trail
        ],
        "upstream": [
            {"to": str(attempt.upstream), "reused": attempt.reused, "status": attempt.status, "error": attempt.error}
            for attempt in exchange.tries
        ],
        "answer": {"status": exchange.status, "code": exchange.code},
    }
    if exchange.cause is not None:
        story["answer"]["cause"] = exchange.cause
    return story
