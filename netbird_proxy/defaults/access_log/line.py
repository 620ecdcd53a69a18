"""Lines of the operator's access log: for each exchange one JSON object on one line.

The members stand in this order. Empty ones are left out. Query strings, header values and bodies are never logged.

- `timestamp`: the time at which the head was complete; `level`, `event`: `info`, `exchange.done`
- `exchange`, `method`, `scheme`, `host`, `path` (raw, without its query), `status`, `duration_ms`
- `bytes_received`, `bytes_sent` (bodies), `client`, `listener`, `account`, `service`, `upstream`
- `tries`, if more than one
- `user`, `groups`, `auth` (the method of authentication: `tunnel`, `password`, …), `by` (the plugin that authenticated)
- `code` of a refusal or a failure
- `observed`: refusals of guards that only observe, as `plugin:code`
"""

from __future__ import annotations

import msgspec

from netbird_http import log_line
from netbird_proxy import OBSERVED, ExchangeView, Identity, IdentityCache, RouteSpec, Upstream

_json = msgspec.json.Encoder().encode
_REMEMBERED = 4096
# An authenticator mostly returns the same object for the same caller.
_CALLERS: IdentityCache[Identity, bytes] = IdentityCache(_REMEMBERED)


def status_of(exchange: ExchangeView) -> int:
    """Return the status for the log: 499 if the client left, even after a response head was sent."""
    error, status = exchange.error, exchange.status
    if error is not None and status != 101 and (status == 0 or error.code == "client_gone"):
        return error.status
    return status or 499  # 101: every upgraded connection ends because one side leaves


class LineFormat:
    """Writes the lines of one route's exchanges, or of exchanges without a route.

    Every text is JSON-encoded, so a client cannot end a string or a line. Texts of the operator are encoded once.
    """

    __slots__ = ("_account", "_ends", "_route", "_service")

    def __init__(self, route: RouteSpec | None) -> None:
        self._route = route  # also keeps its upstreams alive, whose ids are keys
        self._account = "" if route is None else route.account
        self._service = "" if route is None else route.service
        self._ends: dict[tuple[str, str | None, int], bytes] = {}

    def line(self, exchange: ExchangeView) -> bytes:
        origin, tries, who = exchange.origin, exchange.tries, exchange.identity
        upstream = tries[-1].upstream if tries else None
        listener, account = ("", None) if origin is None else (origin.listener, origin.account)
        end = self._ends.get((listener, account, id(upstream)))
        if end is None:
            end = self._end(listener, account, upstream)
        why, notes = exchange.denial or exchange.error, exchange.notes
        return log_line(
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
            "" if why is None else why.code,
            str(notes.get(OBSERVED, "")) if notes else "",
            exchange.scheme,
            end,
            len(tries),
            b"" if who is None else _CALLERS.get(who) or _caller(who),
        )

    def _end(self, listener: str, origin_account: str | None, upstream: Upstream | None) -> bytes:
        account = self._account or origin_account or ""
        end = _member("listener", listener) + _member("account", account) + _member("service", self._service)
        end += _member("upstream", "" if upstream is None else str(upstream))
        if upstream is None or (self._route is not None and any(upstream is own for own in self._route.upstreams)):
            self._ends[listener, origin_account, id(upstream)] = end
        return end


def _member(name: str, text: str) -> bytes:
    return b',"%b":%b' % (name.encode(), _json(text)) if text else b""


def _caller(who: Identity) -> bytes:
    members = _member("user", who.user_id)
    if who.groups:
        members += b',"groups":' + _json([group.name or group.id for group in who.groups])
    members += _member("auth", who.method) + _member("by", who.by)
    return _CALLERS.keep(who, members)
