"""Access log entries as they were before the engine, with which its entries are compared: the `AccessLog` message.

The bytes are written directly, because a message object costs ten times as much. A property test compares both forms.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from netbird_proxy import OBSERVED, BoundedTable, ExchangeView, Identity, IdentityCache, RouteSpec
from netbird_wire.varint import varint as wire_varint
from tests.reference.access_log_line import status_of

LONGEST_PATH = 2048
"""Maximum characters of a path. The queue is bounded by the number of entries, so each entry must be bounded."""
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

_PERCENT, _NUL = 0x25, 0x00
_REMEMBERED = 4096
# Hosts, methods and addresses with their lengths.
_TEXTS: BoundedTable[str, bytes] = BoundedTable(_REMEMBERED)
# Identity → mechanism, user, groups. An authenticator mostly returns the same object for the same caller.
_CALLERS: IdentityCache[Identity, tuple[bytes, bytes, bytes]] = IdentityCache(_REMEMBERED)


class EntryFormat:
    """Writes the entries of one route's exchanges, or of exchanges without a route."""

    __slots__ = ("_account", "_origins", "_second", "_second_bytes", "_service")

    def __init__(self, route: RouteSpec | None) -> None:
        self._account = None if route is None else _text(route.account)
        self._service = _text("" if route is None else route.service)
        self._second = -1
        self._second_bytes = b""

    def entry(self, exchange: ExchangeView, *, groups: bool) -> bytes:
        """Return the message. An exchange without a route on a host listener has no account, see `under`.

        Args:
            groups: true if management reads `user_groups`.
        """
        account = self._account
        if account is None:
            origin = exchange.origin
            account = b"\0" if origin is None or origin.account is None else _text(origin.account)
        status = status_of(exchange)
        who, denial = exchange.identity, exchange.denial
        caller = None
        if who is not None:
            caller = _CALLERS.get(who) or _caller(who)
        mechanism = user = b"\0"  # an empty text: its length
        if denial is not None and denial.code in RESTRICTIONS:
            mechanism = _text(denial.code)
        elif caller is not None:
            mechanism, user, _ = caller
        duration = exchange.ended_ns - exchange.started_ns
        seconds, nanos = divmod(int(exchange.started_at * 1e9) + duration, 1_000_000_000)
        if seconds != self._second:
            self._second, self._second_bytes = seconds, varint(seconds)
        timestamp = b"\x08%b\x10%b" % (self._second_bytes, varint(nanos))
        milliseconds, received, sent = duration // 1_000_000, exchange.bytes_received, exchange.bytes_sent
        raw = exchange.raw_path
        host, method_name, address = exchange.host, exchange.method, exchange.client_address
        entry = (
            b"\x0a%b%b\x12\x20%b\x1a%b\x22%b\x2a%b\x32%b\x38%b\x42%b\x48%b\x52%b\x5a%b\x62%b\x68%b\x70%b\x78%b"
            b"\x82\x01\x04http"
        ) % (
            _SMALL[len(timestamp)],
            timestamp,
            exchange.id.encode(),
            account,
            self._service,
            _TEXTS.get(host) or _text(host),
            _readable(raw),
            _SMALL[milliseconds] if milliseconds < 2048 else varint(milliseconds),
            _TEXTS.get(method_name) or _text(method_name),
            _SMALL[status],
            _TEXTS.get(address) or _text(address),
            mechanism,
            user,
            b"\0" if status == 401 or status == 403 else b"\1",
            _SMALL[received] if received < 2048 else varint(received),
            _SMALL[sent] if sent < 2048 else varint(sent),
        )
        if denial is not None:
            code = denial.code.encode()
            entry += b"\x8a\x01" + _sized(b"\x0a\x04code\x12" + _sized(code))
        if exchange.notes and (observed := exchange.notes.get(OBSERVED)):
            entry += b"\x8a\x01" + _sized(b"\x0a\x08observed\x12" + _sized(str(observed).encode()))
        if groups and caller is not None:
            entry += caller[2]
        return entry


def _caller(who: Identity) -> tuple[bytes, bytes, bytes]:
    # NetBird calls both `oidc`, and stores the user only for these.
    method = "oidc" if who.method == "tunnel" else who.method
    user = _text(who.user_id) if method == "oidc" else b"\0"
    groups = b"".join([b"\xc2\x3e" + _sized((group.name or group.id).encode()) for group in who.groups])
    return _CALLERS.keep(who, (_text(method), user, groups))


def under(account: str, entry: bytes) -> bytes:
    """Return an entry with this account. A field that occurs twice has the value of the last occurrence."""
    return entry + b"\x1a" + _text(account)


def request_of(entries: list[bytes], *, batch: bool) -> bytes:
    """Return a `SendAccessLogRequest`. Without `batch`, for a management that takes no batches, it has one entry."""
    if not batch:
        (entry,) = entries
        return b"\x0a" + _sized(entry)
    return b"".join([b"\xc2\x3e" + _sized(entry) for entry in entries])


_SMALL = [wire_varint(number) for number in range(2048)]


def varint(number: int) -> bytes:
    """Encode a non-negative integer in seven bits per byte."""
    if number < 2048:
        return _SMALL[number]
    if 268_435_456 <= number < 34_359_738_368:  # the usual size of nanoseconds
        return bytes(
            (
                number & 127 | 128,
                number >> 7 & 127 | 128,
                number >> 14 & 127 | 128,
                number >> 21 & 127 | 128,
                number >> 28,
            )
        )
    return wire_varint(number)


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def _text(text: str) -> bytes:
    return _TEXTS.get(text) or _TEXTS.keep(text, _sized(text.encode()))


def _readable(raw: bytes) -> bytes:
    """Return a path percent-decoded, as management shows it. Some databases refuse a NUL, so it is replaced."""
    if _PERCENT in raw:
        raw = unquote_to_bytes(raw)
    if not raw.isascii() or _NUL in raw:
        raw = raw.decode("utf-8", "replace").replace("\0", "�")[:LONGEST_PATH].encode()
    else:
        raw = raw[:LONGEST_PATH]
    return varint(len(raw)) + raw
