"""Rules for the heads of one route: the fields that are dropped or kept, and the secrets that stay with the proxy.

Everything that a route decides beforehand stands in frozen sets and bytes made at apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from netbird_host.http_fields import TOKEN, TOKEN_PATTERN
from netbird_proxy.api.headers import RESERVED_PREFIX, Headers, NameCache, RawHeader, fold

CORE = "core"
"""Who owns the names that no plugin may set. Not a plugin id: those are entry-point names."""

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
"""RFC 9110 §7.6.1, and the ones that older software sends."""

_FRAMING = frozenset((b"content-length", b"host", b"expect"))
# Expect: our listener answers 100 itself once the body is wanted, which is after ALLOW; the upstream's would be late.

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
"""Who the client is, as an upstream believes it: a client's own word never passes."""

FORWARDED_PREFIX = b"x-forwarded-"

FORWARDING = "forwarding"
"""The built-in plugin that may own these names, to say who the client is behind other proxies."""


def is_forwarding(folded: bytes) -> bool:
    return folded in FORWARDED or folded.startswith(FORWARDED_PREFIX)


CORE_NAMES = HOP_BY_HOP | _FRAMING

_NEVER_TRAILERS = CORE_NAMES | FORWARDED | {b"authorization", b"content-encoding", b"content-type", b"cookie", b"via"}
# RFC 9110 §6.5.1: nothing that routes, frames or authenticates; an upstream that merges trailers would believe it.

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

DROP, KEEP, LOOK, COOKIE, CREDENTIAL = range(5)
"""What becomes of a field: verdicts by its name, worked out once."""

_SHARED: dict[object, NameCache[Any]] = {}

_SHARED_LIMIT = 64

_NAMES_LIMIT = 512


def verdict_table(key: object, judge: Callable[[bytes], V]) -> NameCache[V]:
    """The table for these rules. Routes with equal rules share one, so that clients cannot fill one a route."""
    table: NameCache[V] | None = _SHARED.get(key)
    if table is None:
        table = NameCache(judge, _NAMES_LIMIT)
        if len(_SHARED) < _SHARED_LIMIT:
            _SHARED[key] = table
    return table


class HeadRules:
    """What the heads of one route obey.

    Attributes:
        owners: folded header name → the plugin that alone sets it on this route.
        cookies: cookie name → plugin that sets it, or the beginning of names and `*`. Like our session cookies these
            stay between the client and the proxy, and of plugins only their own sees them.
        credentials: folded header name → plugins that check its value; nobody else sees the field.
        ours: cookie name, as it stands in a list → its plugin, CORE where it is nobody's, "" where it is the client's.
        pseudonym: our name in `Via`.
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
        """The client's head as steps see it: no reserved name, none that a plugin owns here under any alias, no
        cookie of ours and no credential."""
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
        """The head for each plugin that may see something of the hidden fields, which stood before these positions."""
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
        """The request's trailers that may go upstream."""
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
        """A `Connection` value without tokens that name what is not the client's to name."""
        return b",".join(
            part
            for part in listed.split(b",")
            if (name := fold(part.strip(b" \t"))) not in self.owners and not name.startswith(RESERVED_PREFIX)
        )

    def cookie(self, value: bytes, plugin: str = "") -> bytes:
        """A `Cookie` value without our cookies, but for the plugin's own; what stays keeps its bytes. May be empty."""
        ours = self.ours
        if value.find(b";") < 0:  # not `in`, see http/head.py
            return b"" if ours[value.partition(b"=")[0]] not in ("", plugin) else value
        parts = value.split(b";")
        kept = [part for part in parts if ours[part.partition(b"=")[0]] in ("", plugin)]
        return value if len(kept) == len(parts) else b";".join(kept).strip(b" \t")


def cookie_name(value: bytes) -> bytes:
    """The name under which a `Set-Cookie` value may come back.

    A nameless cookie is sent as its value alone by older browsers, so its value counts as its name.
    """
    pair = value.partition(b";")[0]
    return pair.lstrip(b"= \t").partition(b"=")[0]


def without_others_cookies(
    fields: Iterable[RawHeader], plugin: str, owner_of: Callable[[bytes], str]
) -> list[RawHeader]:
    """The fields of an answer that a plugin's code made, without cookies of the core's or of another plugin."""
    return [
        pair for pair in fields if pair[0].lower() != b"set-cookie" or owner_of(cookie_name(pair[1])) in ("", plugin)
    ]


def can_be_sent(fields: object) -> bool:
    """Whether these are fields of a head: a tuple of pairs of bytes, each a name and a value that ends no line."""
    return isinstance(fields, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(part, bytes) for part in pair)
        and TOKEN.fullmatch(pair[0])
        and FIELD_VALUE.fullmatch(pair[1])
        for pair in fields
    )


def without_session_token(query: bytes) -> bytes:
    """A query without any `session_token`, however it is spelled; what stays keeps its bytes."""
    if SESSION_PARAMETER not in query and b"%" not in query:
        return query
    return b"&".join(
        part for part in query.split(b"&") if unquote_to_bytes(part.partition(b"=")[0]) != SESSION_PARAMETER
    )


def upgrade_protocols(values: Iterable[bytes]) -> tuple[bytes, ...]:
    """The protocols of `Upgrade` fields that an upstream may be asked for.

    None that carries requests, alone or below TLS: they would pass every guard in the wake of the one that was judged.
    """
    return tuple(
        token
        for value in values
        for part in value.split(b",")
        if _PROTOCOL.fullmatch(token := part.strip(b" \t"))
        and token.partition(b"/")[0].lower() not in _CARRIES_REQUESTS
    )
