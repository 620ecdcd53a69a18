"""Rules for the heads of one route: the fields that are dropped or kept, and the secrets that stay with the proxy.

Everything that a route decides in advance is kept in frozen sets and bytes, made when its mapping is applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from netbird_host.http_fields import TOKEN, TOKEN_PATTERN
from netbird_host.tables import BoundedTable
from netbird_proxy.api.headers import RESERVED_PREFIX, Headers, NameCache, RawHeader, fold

CORE = "core"
"""Owner of the names that no plugin may set. Not the id of a plugin."""

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Fields that end at one hop: RFC 9110 §7.6.1, and those that older software sends."""

# Expect: the listener itself answers 100 when the body is first read, which is after ALLOW.
_FRAMING = frozenset((b"content-length", b"host", b"expect"))

FORWARDED = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-real-ip",
    )
)
"""Fields by which an upstream learns the client's address. Values that a client sends never pass."""

FORWARDED_PREFIX = b"x-forwarded-"

FORWARDING = "forwarding"
"""The built-in plugin that may own these names, to report clients behind trusted proxies."""


def is_forwarding(folded: bytes) -> bool:
    return folded in FORWARDED or folded.startswith(FORWARDED_PREFIX)


CORE_NAMES = HOP_BY_HOP | _FRAMING

# RFC 9110 §6.5.1: fields that route, frame or authenticate. An upstream that merges trailers would believe them.
_NEVER_TRAILERS = CORE_NAMES | FORWARDED | {b"authorization", b"content-encoding", b"content-type", b"cookie", b"via"}

_NEVER_TRAILER_PREFIXES = (RESERVED_PREFIX, FORWARDED_PREFIX)

SESSION_COOKIE = b"nb_session"

HOST_COOKIES = b"__host-nb_"

SESSION_PARAMETER = b"session_token"

FIELD_VALUE = re.compile(rb"[^\r\n\0]*")

_PROTOCOL = re.compile(f"{TOKEN_PATTERN}(?:/{TOKEN_PATTERN})?".encode())

_CARRIES_REQUESTS = frozenset((b"h2", b"h2c", b"h3", b"http", b"tls"))

QUIET_CONNECTION = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close"))

V = TypeVar("V")

_NO_VIEWS: Mapping[str, Headers] = {}

# Treatment of a field, decided once for each name: LOOK and COOKIE depend on the value, CREDENTIAL on the plugin.
DROP, KEEP, LOOK, COOKIE, CREDENTIAL = range(5)

_SHARED: BoundedTable[object, NameCache[Any]] = BoundedTable(64)

_NAMES_LIMIT = 512


def verdict_table(key: object, judge: Callable[[bytes], V]) -> NameCache[V]:
    """Return the table of verdicts for `key`. Routes with equal rules share one, so clients cannot fill many."""
    table: NameCache[V] | None = _SHARED.get(key)
    if table is None:
        table = _SHARED.keep(key, NameCache(judge, _NAMES_LIMIT))
    return table


class HeadRules:
    """Rules for the request and response heads of one route.

    Attributes:
        owners: folded header name → the only plugin that may set it on this route.
        cookies: name of a cookie, or a prefix and `*` → the plugin that sets it. These cookies stay between the client
            and the proxy, like the session cookie; only the plugin itself sees them.
        credentials: folded header name → the plugins that check its value. No other plugin sees the field.
        ours: cookie name as received → its plugin; CORE if it is reserved; "" if it belongs to the upstream.
        pseudonym: the proxy's name in `Via`.
    """

    __slots__ = ("cookies", "credentials", "ours", "owners", "pseudonym", "verdicts")

    def __init__(
        self,
        owners: Mapping[bytes, str] | None = None,
        cookies: Mapping[bytes, str] | None = None,
        pseudonym: bytes = b"netbird-proxy",
        credentials: Mapping[bytes, frozenset[str]] | None = None,
    ) -> None:
        self.owners = dict(owners or {})
        self.cookies = dict(cookies or {})
        prefixes = [(name[:-1], owner) for name, owner in self.cookies.items() if name.endswith(b"*")]
        self.pseudonym = pseudonym
        self.credentials = dict(credentials or {})
        names, secrets = frozenset(self.owners), frozenset(self.credentials)

        def judge(name: bytes) -> int:
            folded = fold(name)
            if folded in names or folded.startswith(RESERVED_PREFIX):
                return DROP
            if folded == b"cookie":
                return COOKIE
            if folded in secrets:
                return CREDENTIAL
            return LOOK if folded == b"connection" else KEEP

        self.verdicts = verdict_table(("incoming", names, secrets), judge)

        def owner_of(name: bytes) -> str:
            name = name.strip(b" \t")
            owner = self.cookies.get(name) or next((of for start, of in prefixes if name.startswith(start)), "")
            folded = name.lower()
            reserved = folded == SESSION_COOKIE or folded.startswith(HOST_COOKIES)
            return owner or (CORE if reserved else "")

        self.ours = verdict_table(("cookies", tuple(sorted(self.cookies.items()))), owner_of)

    def incoming(self, raw: Iterable[RawHeader]) -> Headers:
        """Return the client's head without reserved and owned names under any alias, own cookies and credentials."""
        return self.views(raw)[0]

    def views(self, raw: Iterable[RawHeader]) -> tuple[Headers, Mapping[str, Headers]]:
        """The head as every step may see it and, by plugin, as it looks with that plugin's cookies and credentials."""
        verdicts = self.verdicts
        kept: list[RawHeader] = []
        hidden: list[tuple[int, RawHeader]] = []
        for pair in raw:
            verdict = verdicts[pair[0]]
            if verdict == KEEP:
                kept.append(pair)
            elif verdict == LOOK:
                kept.append(pair if pair[1] in QUIET_CONNECTION else (pair[0], self._unlisted(pair[1])))
            elif verdict == COOKIE:
                value = self.cookie(pair[1])
                if value != pair[1]:
                    hidden.append((len(kept), pair))
                if value:
                    kept.append((pair[0], value))
            elif verdict == CREDENTIAL:
                hidden.append((len(kept), pair))
        return Headers(kept), self._with_own_secrets(kept, hidden) if hidden else _NO_VIEWS

    def _with_own_secrets(self, kept: list[RawHeader], hidden: list[tuple[int, RawHeader]]) -> Mapping[str, Headers]:
        """Return the head by plugin, with those hidden fields that the plugin may see back at their positions."""
        owners: set[str] = set()
        for _, (name, value) in hidden:
            if self.verdicts[name] == COOKIE:
                owners.update(self.ours[part.partition(b"=")[0]] for part in value.split(b";"))
            else:
                owners |= self.credentials[fold(name)]
        views: dict[str, Headers] = {}
        for plugin in owners - {"", CORE}:
            fields = list(kept)
            for position, (name, value) in reversed(hidden):
                replaced, shown = 0, value
                if self.verdicts[name] == COOKIE:
                    replaced, shown = int(bool(self.cookie(value))), self.cookie(value, plugin)
                elif plugin not in self.credentials[fold(name)]:
                    continue
                fields[position : position + replaced] = [(name, shown)] if shown else []
            views[plugin] = Headers(fields)
        return views

    def trailers(self, raw: Iterable[RawHeader], dropped: frozenset[bytes] = frozenset()) -> list[RawHeader]:
        """Return the trailers of a request that may go upstream."""
        return [
            (pair[0].lower(), pair[1])
            for pair in raw
            if (name := fold(pair[0])) not in self.owners
            and name not in self.credentials
            and name not in _NEVER_TRAILERS
            and name not in dropped
            and not name.startswith(_NEVER_TRAILER_PREFIXES)
            and TOKEN.fullmatch(name)
            and FIELD_VALUE.fullmatch(pair[1])
        ]

    def _unlisted(self, listed: bytes) -> bytes:
        """Return a `Connection` value without reserved and owned names, which a client may not have removed."""
        return b",".join(
            part
            for part in listed.split(b",")
            if (name := fold(part.strip(b" \t"))) not in self.owners and not name.startswith(RESERVED_PREFIX)
        )

    def cookie(self, value: bytes, plugin: str = "") -> bytes:
        """Return a `Cookie` value with the upstream's cookies and those of `plugin`, bytes unchanged. May be empty."""
        ours = self.ours
        if value.find(b";") < 0:  # not `in`, see http/head.py
            return b"" if ours[value.partition(b"=")[0]] not in ("", plugin) else value
        parts = value.split(b";")
        kept = [part for part in parts if ours[part.partition(b"=")[0]] in ("", plugin)]
        return value if len(kept) == len(parts) else b";".join(kept).strip(b" \t")


def cookie_name(value: bytes) -> bytes:
    """Return the name under which a browser sends the cookie of a `Set-Cookie` value.

    Older browsers send a cookie without a name as its value alone, so its value counts as its name.
    """
    pair = value.partition(b";")[0]
    return pair.lstrip(b"= \t").partition(b"=")[0]


def without_others_cookies(
    fields: Iterable[RawHeader], plugin: str, owner_of: Callable[[bytes], str]
) -> list[RawHeader]:
    """Return the fields of a plugin's answer without `Set-Cookie` for cookies of the core or of another plugin."""
    return [
        pair for pair in fields if pair[0].lower() != b"set-cookie" or owner_of(cookie_name(pair[1])) in ("", plugin)
    ]


def can_be_sent(fields: object) -> bool:
    """Return whether this is a tuple of (name, value) pairs in bytes that can be sent as fields of a head."""
    return isinstance(fields, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(part, bytes) for part in pair)
        and TOKEN.fullmatch(pair[0])
        and FIELD_VALUE.fullmatch(pair[1])
        for pair in fields
    )


def without_session_token(query: bytes) -> bytes:
    """Return a query without `session_token`, in any percent-encoding; the other bytes are unchanged."""
    if SESSION_PARAMETER not in query and b"%" not in query:
        return query
    return b"&".join(
        part for part in query.split(b"&") if unquote_to_bytes(part.partition(b"=")[0]) != SESSION_PARAMETER
    )


def upgrade_protocols(values: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the protocols of `Upgrade` fields that an upstream may be asked for.

    Protocols that carry further requests, also below TLS, are left out: those requests would pass no guard.
    """
    return tuple(
        token
        for value in values
        for part in value.split(b",")
        if _PROTOCOL.fullmatch(token := part.strip(b" \t"))
        and token.partition(b"/")[0].lower() not in _CARRIES_REQUESTS
    )
