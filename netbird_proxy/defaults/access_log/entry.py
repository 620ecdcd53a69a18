"""Access log entries for management: the `AccessLog` message of an exchange, as bytes of the wire.

The engine writes the bytes directly, because a message object costs ten times as much.
"""

from __future__ import annotations

from netbird_http import log_entry
from netbird_proxy import OBSERVED, ExchangeView, Identity, IdentityCache, RouteSpec
from netbird_proxy.defaults.access_log.line import status_of
from netbird_wire.varint import varint

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
"""Codes of denials that are sent as the mechanism, as NetBird's dashboard expects."""

_REMEMBERED = 4096
# Identity → mechanism, user, groups. An authenticator mostly returns the same object for the same caller.
_CALLERS: IdentityCache[Identity, tuple[str, str, bytes]] = IdentityCache(_REMEMBERED)


class EntryFormat:
    """Writes the entries of one route's exchanges, or of exchanges without a route."""

    __slots__ = ("_account", "_service")

    def __init__(self, route: RouteSpec | None) -> None:
        self._account = None if route is None else route.account
        self._service = "" if route is None else route.service

    def entry(self, exchange: ExchangeView, *, groups: bool) -> bytes:
        """Return the message. An exchange without a route on a host listener has no account, see `under`.

        Args:
            groups: true if management reads `user_groups`.
        """
        account: str | None = self._account
        if account is None:
            origin = exchange.origin
            account = origin.account if origin is not None else None
        who, denial, notes = exchange.identity, exchange.denial, exchange.notes
        mechanism, user, members = ("", "", b"") if who is None else _CALLERS.get(who) or _caller(who)
        code = "" if denial is None else denial.code
        if code in RESTRICTIONS:
            mechanism, user = code, ""
        return log_entry(
            exchange.id,
            exchange.started_at,
            exchange.ended_ns - exchange.started_ns,
            exchange.method,
            exchange.host,
            exchange.raw_path,
            status_of(exchange),
            exchange.bytes_received,
            exchange.bytes_sent,
            exchange.client_address,
            code,
            str(notes.get(OBSERVED) or "") if notes else "",
            account or "",
            self._service,
            mechanism,
            user,
            members if groups else b"",
        )


def _caller(who: Identity) -> tuple[str, str, bytes]:
    # NetBird calls both `oidc`, and stores the user only for these.
    method = "oidc" if who.method == "tunnel" else who.method
    user = who.user_id if method == "oidc" else ""
    groups = b"".join([b"\xc2\x3e" + _sized((group.name or group.id).encode()) for group in who.groups])
    return _CALLERS.keep(who, (method, user, groups))


def under(account: str, entry: bytes) -> bytes:
    """Return an entry with this account. A field that occurs twice has the value of the last occurrence."""
    return entry + b"\x1a" + _sized(account.encode())


def request_of(entries: list[bytes], *, batch: bool) -> bytes:
    """Return a `SendAccessLogRequest`. Without `batch`, for a management that takes no batches, it has one entry."""
    if not batch:
        (entry,) = entries
        return b"\x0a" + _sized(entry)
    return b"".join([b"\xc2\x3e" + _sized(entry) for entry in entries])


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data
