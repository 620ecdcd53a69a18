"""Lines of the access log as they were before the engine, with which its lines are compared: JSON, one object a line.

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

import time

import msgspec

from netbird_proxy import OBSERVED, BoundedTable, ExchangeView, Identity, IdentityCache, RouteSpec, Upstream

_json = msgspec.json.Encoder().encode
_REMEMBERED = 4096
# Hosts, methods and addresses as JSON.
_TEXTS: BoundedTable[str, bytes] = BoundedTable(_REMEMBERED)
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

    Every text is JSON-encoded, so a client cannot end a string or a line. Encoded texts are reused between exchanges.
    """

    __slots__ = ("_account", "_ends", "_route", "_second", "_second_text", "_service")

    def __init__(self, route: RouteSpec | None) -> None:
        self._route = route  # also keeps its upstreams alive, whose ids are keys
        self._account = "" if route is None else route.account
        self._service = "" if route is None else route.service
        self._ends: dict[tuple[str, str | None, int], bytes] = {}
        self._second = -1
        self._second_text = b""

    def line(self, exchange: ExchangeView) -> bytes:
        origin, tries, who = exchange.origin, exchange.tries, exchange.identity
        upstream = tries[-1].upstream if tries else None
        listener, account = ("", None) if origin is None else (origin.listener, origin.account)
        end = self._ends.get((listener, account, id(upstream)))
        if end is None:
            end = self._end(listener, account, upstream)
        started = exchange.started_at
        second = int(started)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        milliseconds, microseconds = divmod((exchange.ended_ns - exchange.started_ns) // 1000, 1000)
        method, host, client = exchange.method, exchange.host, exchange.client_address
        line = (
            b'{"timestamp":"%b.%06dZ","level":"info","event":"exchange.done","exchange":"%b","method":%b,"scheme":"%b",'
            b'"host":%b,"path":%b,"status":%d,"duration_ms":%d.%03d,"bytes_received":%d,"bytes_sent":%d,"client":%b%b'
        ) % (
            self._second_text,
            (started - second) * 1_000_000,
            exchange.id.encode(),
            _TEXTS.get(method) or _text(method),
            exchange.scheme.encode(),
            _TEXTS.get(host) or _text(host),
            _json(exchange.raw_path.decode("latin-1")),
            status_of(exchange),
            milliseconds,
            microseconds,
            exchange.bytes_received,
            exchange.bytes_sent,
            _TEXTS.get(client) or _text(client),
            end,
        )
        if len(tries) > 1:
            line += b',"tries":%d' % len(tries)
        if who is not None:
            line += _CALLERS.get(who) or _caller(who)
        why = exchange.denial or exchange.error
        if why is not None:
            line += _member("code", why.code)
        if exchange.notes:
            line += _member("observed", str(exchange.notes.get(OBSERVED, "")))
        return line + b"}\n"

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


def _text(text: str) -> bytes:
    return _TEXTS.get(text) or _TEXTS.keep(text, _json(text))
