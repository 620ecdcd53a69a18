"""What the operator's log says about an exchange that is over."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from netbird_proxy import ExchangeView


class Line(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One exchange. Never a query string, a header value or a body; what is empty is left out."""

    timestamp: datetime
    """When the head was complete."""
    level: str = msgspec.field(default_factory=lambda: "info")  # a factory's value is not left out as a default
    event: str = msgspec.field(default_factory=lambda: "exchange.done")
    exchange: str
    method: str
    scheme: str
    host: str
    path: str
    """Raw, without its query."""
    status: int
    duration_ms: float
    bytes_received: int
    bytes_sent: int
    client: str
    listener: str = ""
    account: str = ""
    service: str = ""
    upstream: str = ""
    tries: int = 0
    user: str = ""
    groups: list[str] = []
    auth: str = ""
    """How the caller was known: `tunnel`, `password`, …"""
    by: str = ""
    """The plugin that knew."""
    code: str = ""
    """Why it was refused or failed."""


def status_of(exchange: ExchangeView) -> int:
    """What the log says: 499 when the client left, whatever head it had been sent."""
    error = exchange.error
    if exchange.status == 101:  # an upgraded connection ends by somebody leaving
        return 101
    if error is not None and (exchange.status == 0 or error.code == "client_gone"):
        return error.status
    return exchange.status or 499


def line_of(exchange: ExchangeView) -> Line:
    route, who, origin, tries = exchange.route, exchange.identity, exchange.origin, exchange.tries
    account = route.account if route is not None else origin.account if origin is not None else None
    why = exchange.denial or exchange.error
    return Line(
        timestamp=datetime.fromtimestamp(exchange.started_at, UTC),
        exchange=exchange.id,
        method=exchange.method,
        scheme=exchange.scheme,
        host=exchange.host,
        path=exchange.raw_path.decode("latin-1"),
        status=status_of(exchange),
        duration_ms=(exchange.ended_ns - exchange.started_ns) // 1000 / 1000,
        bytes_received=exchange.bytes_received,
        bytes_sent=exchange.bytes_sent,
        client=exchange.client_address,
        listener=origin.listener if origin is not None else "",
        account=account or "",
        service=route.service if route is not None else "",
        upstream=str(tries[-1].upstream) if tries else "",
        tries=len(tries) if len(tries) > 1 else 0,
        user=who.user_id if who is not None else "",
        groups=[group.name or group.id for group in who.groups] if who is not None else [],
        auth=who.method if who is not None else "",
        by=who.by if who is not None else "",
        code=why.code if why is not None else "",
    )
