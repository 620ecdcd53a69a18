"""What was decided lately, for whoever asks why: a bounded memory of exchanges, by id."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Any

from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.headers import Headers
from netbird_proxy.api.model import ExchangeId
from netbird_proxy.pipeline.exchange import Exchange

LONGEST_PATH = 2048
_NO_HEADERS = Headers([])
REFUSED_KEPT = 4096
SERVED_KEPT = 256
MALFORMED_KEPT = 256
"""Refusals are what people ask about, so traffic that is served well cannot push them out, nor can requests
that strangers send malformed."""


class Decisions:
    """Remembers exchanges as they are, and puts them into words only when asked."""

    def __init__(
        self, *, refused: int = REFUSED_KEPT, served: int = SERVED_KEPT, malformed: int = MALFORMED_KEPT
    ) -> None:
        self._refused: deque[ExchangeView] = deque(maxlen=refused)
        self._served: deque[ExchangeView] = deque(maxlen=served)
        self._malformed: deque[ExchangeView] = deque(maxlen=malformed)

    def record(self, exchange: ExchangeView) -> None:
        """Keep one exchange that is over, without what nobody is told. Drops the oldest of its sort when full."""
        _slim(exchange)
        if not exchange.host:  # it is malformed: anybody can send any number of these
            self._malformed.append(exchange)
            return
        served = exchange.denial is None and exchange.error is None and exchange.status < 400
        (self._served if served else self._refused).append(exchange)

    def find(self, id_: ExchangeId) -> dict[str, Any] | None:
        """The story of one exchange, or None if it never was or is forgotten."""
        for ring in (self._refused, self._served, self._malformed):
            for exchange in reversed(ring):
                if exchange.id == id_:
                    return described(exchange)
        return None

    def latest(self, count: int = 20) -> list[dict[str, Any]]:
        """The last refusals, newest first."""
        return [described(exchange) for exchange in list(self._refused)[: -count - 1 : -1]]

    def __len__(self) -> int:
        return len(self._refused) + len(self._served) + len(self._malformed)


def _slim(exchange: ExchangeView) -> None:
    """Let go of what a client can make large: a memory of so many exchanges would be a memory of so many heads.

    Nobody needs them any more: this is the last observer of an exchange that is over.
    """
    if not isinstance(exchange, Exchange):
        return
    exchange.headers = _NO_HEADERS
    exchange.query = b""
    if len(exchange.raw_path) > LONGEST_PATH:
        exchange.raw_path = exchange.raw_path[:LONGEST_PATH]
    error: BaseException | None = exchange.error
    while error is not None:  # its frames hold heads and bodies
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def described(exchange: ExchangeView) -> dict[str, Any]:
    """An exchange in words, for the operator: no query, no header values, no body."""
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
            {"to": str(one.upstream), "reused": one.reused, "status": one.status, "error": one.error}
            for one in exchange.tries
        ],
        "answer": {"status": exchange.status, "code": _code(exchange)},
    }
    if exchange.error is not None:
        story["answer"]["cause"] = str(exchange.error)
    return story


def _code(exchange: ExchangeView) -> str:
    if exchange.denial is not None:
        return exchange.denial.code
    return exchange.error.code if exchange.error is not None else ""
