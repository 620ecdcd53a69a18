"""What management is told about an exchange: its `AccessLog` message."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from netbird_proxy import ExchangeView
from netbird_proxy.defaults.access_log.line import status_of
from netbird_wire.proxy_service_pb2 import AccessLog as Entry

LONGEST_PATH = 2048
"""Characters. A queue of entries is bounded by their number, so an entry must be bounded too."""
RESTRICTIONS = frozenset(
    {
        "ip_restricted",
        "country_restricted",
        "geo_unavailable",
        "crowdsec_ban",
        "crowdsec_captcha",
        "crowdsec_throttle",
        "crowdsec_unavailable",
    }
)
"""Denials that stand as the mechanism, as NetBird's dashboard expects."""


def entry_of(exchange: ExchangeView, *, groups: bool) -> Entry | None:
    """The entry, or None where management could not say whose it is.

    Args:
        groups: whether management reads `user_groups`.
    """
    route, who, origin = exchange.route, exchange.identity, exchange.origin
    account = route.account if route is not None else origin.account if origin is not None else None
    if account is None:  # an account-scoped token may not report an unknown host, and we cannot know our token's scope
        return None
    status = status_of(exchange)
    mechanism = _mechanism(exchange)
    duration_ns = exchange.ended_ns - exchange.started_ns
    entry = Entry(
        log_id=exchange.id,
        account_id=account,
        service_id=route.service if route is not None else "",
        host=exchange.host,
        path=_readable(exchange.raw_path),
        duration_ms=duration_ns // 1_000_000,
        method=exchange.method,
        response_code=status,
        source_ip=exchange.client_address,
        auth_mechanism=mechanism,
        user_id=who.user_id if who is not None and mechanism == "oidc" else "",
        auth_success=status not in (401, 403),
        bytes_upload=exchange.bytes_received,
        bytes_download=exchange.bytes_sent,
        protocol="http",
        user_groups=[group.name or group.id for group in who.groups] if groups and who is not None else None,
    )
    seconds, nanos = divmod(int(exchange.started_at * 1e9) + duration_ns, 10**9)
    timestamp = entry.timestamp
    timestamp.seconds = seconds
    timestamp.nanos = nanos
    if exchange.denial is not None:
        entry.metadata["code"] = exchange.denial.code
    return entry


def _mechanism(exchange: ExchangeView) -> str:
    if exchange.denial is not None and exchange.denial.code in RESTRICTIONS:
        return exchange.denial.code
    if exchange.identity is None:
        return ""
    method = exchange.identity.method
    return "oidc" if method == "tunnel" else method  # NetBird says so of both, and keeps the user only then


def _readable(raw: bytes) -> str:
    """Decoded, as management shows it. A NUL would be refused by some of its databases."""
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "replace").replace("\0", "�")[:LONGEST_PATH]
