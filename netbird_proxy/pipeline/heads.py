"""The heads of requests: what a client may say to a step and to an upstream.

Everything that a route decides beforehand stands in frozen sets and bytes made at apply; per exchange there is one pass
over the fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from netbird_host.containment import describe_error
from netbird_proxy.api.errors import BadRequest, RouteRefused, StepFailed
from netbird_proxy.api.headers import RESERVED_PREFIX, ByName, Headers, RawHeader, fold
from netbird_proxy.api.model import Address, RouteSpec, Upstream
from netbird_proxy.api.outgoing_head import Judged, OutgoingHead
from netbird_proxy.pipeline.bound import BoundTransform
from netbird_proxy.pipeline.exchange import Exchange

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
_FORWARDED_PREFIX = b"x-forwarded-"
FORWARDING = "forwarding"
"""The built-in plugin that may own these names, to say who the client is behind other proxies."""


def is_forwarding(folded: bytes) -> bool:
    return folded in FORWARDED or folded.startswith(_FORWARDED_PREFIX)


_SAID = frozenset((b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port"))

CORE_NAMES = HOP_BY_HOP | _FRAMING
_NEVER_TRAILERS = CORE_NAMES | FORWARDED | {b"authorization", b"content-encoding", b"content-type", b"cookie", b"via"}
# RFC 9110 §6.5.1: nothing that routes, frames or authenticates; an upstream that merges trailers would believe it.
_NEVER_TRAILER_PREFIXES = (RESERVED_PREFIX, _FORWARDED_PREFIX)

SESSION_COOKIE = b"nb_session"
HOST_COOKIES = b"__host-nb_"
SESSION_PARAMETER = b"session_token"

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[^\r\n\0]*")
_PROTOCOL = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:/[!#$%&'*+.^_`|~0-9A-Za-z-]+)?")
_CARRIES_REQUESTS = frozenset((b"h2", b"h2c", b"h3", b"http", b"tls"))
_TARGET_PATH = re.compile(rb"/[!-~]*")
_READ = frozenset((b"connection", b"content-length", b"te", b"transfer-encoding", b"upgrade"))
"""What write() reads before it is dropped."""
QUIET_CONNECTION = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close"))


V = TypeVar("V")
_NO_VIEWS: Mapping[str, Headers] = {}

_DROP, _KEEP, _LOOK, _COOKIE = range(4)
"""What becomes of a field: verdicts by its name, worked out once."""
_SHARED: dict[object, ByName[Any]] = {}
_SHARED_LIMIT = 64
_NAMES_LIMIT = 512


def _verdicts(key: object, judge: Callable[[bytes], V]) -> ByName[V]:
    """The table for these rules. Routes with equal rules share one, so that clients cannot fill one a route."""
    table: ByName[V] | None = _SHARED.get(key)
    if table is None:
        table = ByName(judge, _NAMES_LIMIT)
        if len(_SHARED) < _SHARED_LIMIT:
            _SHARED[key] = table
    return table


class HeadRules:
    """What the heads of one route obey.

    Attributes:
        owners: folded header name → the plugin that alone sets it on this route.
        cookies: cookie name → plugin that sets it, or the beginning of names and `*`. Like our session cookies these
            stay between the client and the proxy, and of plugins only their own sees them.
        ours: cookie name, as it stands in a list → its plugin, CORE where it is nobody's, "" where it is the client's.
        pseudonym: our name in `Via`.
    """

    __slots__ = ("cookies", "ours", "owners", "pseudonym", "verdicts")

    def __init__(
        self,
        owners: Mapping[bytes, str] | None = None,
        cookies: Mapping[bytes, str] | None = None,
        pseudonym: bytes = b"netbird-proxy",
    ) -> None:
        self.owners = dict(owners or {})
        self.cookies = dict(cookies or {})
        prefixes = [(name[:-1], owner) for name, owner in self.cookies.items() if name.endswith(b"*")]
        self.pseudonym = pseudonym
        names = frozenset(self.owners)

        def judge(name: bytes) -> int:
            folded = fold(name)
            if folded in names or folded.startswith(RESERVED_PREFIX):
                return _DROP
            if folded == b"cookie":
                return _COOKIE
            return _LOOK if folded == b"connection" else _KEEP

        self.verdicts = _verdicts(("incoming", names), judge)

        def owner_of(name: bytes) -> str:
            name = name.strip(b" \t")
            owner = self.cookies.get(name) or next((of for start, of in prefixes if name.startswith(start)), "")
            folded = name.lower()
            reserved = folded == SESSION_COOKIE or folded.startswith(HOST_COOKIES)
            return owner or (CORE if reserved else "")

        self.ours = _verdicts(("cookies", tuple(sorted(self.cookies.items()))), owner_of)

    def incoming(self, raw: Iterable[RawHeader]) -> Headers:
        """The client's head as steps see it: no reserved name, none that a plugin owns here under any alias, and no
        cookie of ours."""
        return self.views(raw)[0]

    def views(self, raw: Iterable[RawHeader]) -> tuple[Headers, Mapping[str, Headers]]:
        """The head as steps see it, and as those plugins see it whose own cookies are in it."""
        verdicts = self.verdicts
        kept: list[RawHeader] = []
        cookies: list[tuple[int, RawHeader]] = []
        for pair in raw:
            verdict = verdicts[pair[0]]
            if verdict == _KEEP:
                kept.append(pair)
            elif verdict == _LOOK:
                kept.append(pair if pair[1] in QUIET_CONNECTION else (pair[0], self._unlisted(pair[1])))
            elif verdict == _COOKIE:
                value = self.cookie(pair[1])
                if value != pair[1]:
                    cookies.append((len(kept), pair))
                if value:
                    kept.append((pair[0], value))
        return Headers(kept), self._with_own_cookies(kept, cookies) if cookies else _NO_VIEWS

    def _with_own_cookies(self, kept: list[RawHeader], cookies: list[tuple[int, RawHeader]]) -> Mapping[str, Headers]:
        """The head for each plugin that has cookies in these fields, which stand before the given positions."""
        owners = {self.ours[part.partition(b"=")[0]] for _, (_, value) in cookies for part in value.split(b";")}
        views: dict[str, Headers] = {}
        for plugin in owners - {"", CORE}:
            fields = list(kept)
            for position, (name, value) in reversed(cookies):
                replaces = bool(self.cookie(value))
                fields[position : position + replaces] = [(name, self.cookie(value, plugin))]
            views[plugin] = Headers(fields)
        return views

    def trailers(self, raw: Iterable[RawHeader], dropped: frozenset[bytes] = frozenset()) -> list[RawHeader]:
        """The request's trailers that may go upstream."""
        return [
            (pair[0].lower(), pair[1])
            for pair in raw
            if (name := fold(pair[0])) not in self.owners
            and name not in _NEVER_TRAILERS
            and name not in dropped
            and not name.startswith(_NEVER_TRAILER_PREFIXES)
            and _TOKEN.fullmatch(name)
            and _VALUE.fullmatch(pair[1])
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
        and _TOKEN.fullmatch(pair[0])
        and _VALUE.fullmatch(pair[1])
        for pair in fields
    )


def without_session_token(query: bytes) -> bytes:
    """A query without any `session_token`, however it is spelled; what stays keeps its bytes."""
    if SESSION_PARAMETER not in query and b"%" not in query:
        return query
    return b"&".join(
        part for part in query.split(b"&") if unquote_to_bytes(part.partition(b"=")[0]) != SESSION_PARAMETER
    )


def offers(values: Iterable[bytes]) -> tuple[bytes, ...]:
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


@dataclass(slots=True)
class WrittenHead:
    """A request head ready for the wire, and how its body is framed."""

    head: bytes
    method: bytes
    has_body: bool
    chunked: bool
    upgrade: tuple[bytes, ...]
    """The protocols that are asked for."""
    dropped: frozenset[bytes]
    """Folded names that may not come back as trailers."""


def _judge(dropped: Collection[bytes], owned: Collection[bytes]) -> Callable[[bytes], int]:
    """What becomes of a client's field on its way to an upstream."""

    def judge(name: bytes) -> int:
        folded = fold(name)
        if folded == b"cookie" and folded not in dropped:
            return _COOKIE
        if folded in dropped:
            # Only the true spelling frames. An alias goes unread, or an upstream would frame by what we ignored.
            return _LOOK if name in _READ else _DROP
        return _DROP if folded.startswith(_FORWARDED_PREFIX) and folded not in owned else _KEEP

    return judge


class RequestHeads:
    """Writes the heads that go to one upstream of one route."""

    def __init__(
        self, spec: RouteSpec, upstream: Upstream, rules: HeadRules, transforms: Sequence[BoundTransform] = ()
    ) -> None:
        """Raises RouteRefused for a target path or a custom header that cannot be sent."""
        path, _, self._query = upstream.path.partition(b"?")
        if not _TARGET_PATH.fullmatch(upstream.path) or b"#" in upstream.path:
            raise RouteRefused(f"the target path {upstream.path.decode('latin-1')!r} cannot be sent")
        self._base = path[:-1] if path.endswith(b"/") else path
        self._cut = len(spec.prefix) if spec.strip_prefix and spec.prefix != b"/" else 0
        self._host = None if spec.pass_host_header else host_field(upstream)
        self.rules = rules
        self._transforms = tuple(transforms)
        core = CORE_NAMES | (FORWARDED.difference(rules.owners))
        self._says = _SAID if _SAID.isdisjoint(rules.owners) else _SAID.difference(rules.owners)
        self._owners = {**dict.fromkeys(core, CORE), **rules.owners, b"via": CORE}
        self._custom = custom_headers(upstream, self._owners)
        self._dropped = core | {fold(name) for name, _ in self._custom}
        self._verdicts = _verdicts(
            ("outgoing", frozenset(self._dropped), frozenset(rules.owners)), _judge(self._dropped, rules.owners.keys())
        )
        self._via = (b"via", b"1.1 " + rules.pseudonym)
        self._judged: Judged = {}

    def write(self, exchange: Exchange, carried_body: bool | None) -> WrittenHead:
        """The head for one exchange.

        Args:
            carried_body: whether a body follows, as our listener knows it; None where only the head tells.

        Raises:
            BadRequest: two lengths, or one that is no number; a field that would be several on the wire.
            StepFailed: a transform raised, set what it may not, or is no plain function.
        """
        verdicts = self._verdicts
        fields: list[RawHeader] = []
        length: bytes | None = None
        listed: set[bytes] = set()
        asked: list[bytes] = []
        encoded = trailers_wanted = False
        for pair in exchange.headers.raw:
            verdict = verdicts[pair[0]]
            if verdict == _KEEP:
                fields.append(pair)
            elif verdict == _LOOK:
                name, value = pair
                if name == b"connection":
                    if value not in QUIET_CONNECTION:
                        listed.update(fold(part.strip(b" \t")) for part in value.split(b","))
                elif name == b"content-length":
                    if length is not None or not value.isdigit():
                        raise BadRequest("the request body has no one length")
                    length = value
                elif name == b"transfer-encoding":
                    encoded = True
                elif name == b"upgrade":
                    asked.append(value)
                else:  # te
                    trailers_wanted = trailers_wanted or b"trailers" in value.lower()
            elif verdict == _COOKIE and (value := self.rules.cookie(pair[1])):
                fields.append((pair[0], value))
        if listed:
            fields = [pair for pair in fields if fold(pair[0]) not in listed]
        upgrade: tuple[bytes, ...] = ()
        if exchange.kind == "websocket" or (asked and carried_body is None and b"upgrade" in listed):
            upgrade = offers(asked)
        if upgrade:
            fields.append((b"connection", b"Upgrade"))
            fields.append((b"upgrade", b", ".join(upgrade)))
        elif trailers_wanted:
            fields.append((b"te", b"trailers"))
            fields.append((b"connection", b"TE"))
        if says := self._says:
            said = _forwarded(exchange)
            fields += said if says is _SAID else [pair for pair in said if pair[0] in says]
        fields.extend(self._custom)
        fields.append(self._via)

        method = exchange.method.encode("latin-1")
        target = self._target(exchange)
        if self._transforms:
            fields = self._transformed(exchange, method, target, fields)
        has_body, chunked = self._framing(exchange, carried_body, length, encoded)
        host = exchange.authority if self._host is None else self._host
        if chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        elif length is not None:
            fields.append((b"content-length", length))
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (
            method,
            target,
            host,
            b"\r\n".join(map(_FIELD, fields)),  # never empty: `via` is always there
        )
        if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * len(fields) + 6:
            # Our listener lets none through, and transforms are checked as they set; a server around us may.
            raise BadRequest("a field of the request holds a line break or NUL")
        return WrittenHead(head, method, has_body, chunked, upgrade, self._dropped)

    def _target(self, exchange: Exchange) -> bytes:
        """The bytes after the matched prefix are sent as they came; the prefix is replaced by the target's own path."""
        rest = exchange.raw_path[self._cut :]
        target = self._base + (rest or b"/")
        query = without_session_token(exchange.query) if exchange.query else b""
        if self._query:
            query = self._query + b"&" + query if query else self._query
        return target + b"?" + query if query else target

    @staticmethod
    def _framing(
        exchange: Exchange, carried_body: bool | None, length: bytes | None, encoded: bool
    ) -> tuple[bool, bool]:
        if encoded:
            if length is not None:
                raise BadRequest("the request body has a length and an encoding")
            return True, True
        if length is not None:
            return int(length) > 0, False
        if carried_body is None:
            # HTTP/2 frames bodies outside the head; under such a server any request but these may have one.
            return (exchange.http_version >= "2" and exchange.method not in ("GET", "HEAD", "OPTIONS", "TRACE"),) * 2
        return carried_body, carried_body

    def _transformed(
        self, exchange: Exchange, method: bytes, target: bytes, fields: list[RawHeader]
    ) -> list[RawHeader]:
        for transform in self._transforms:
            outgoing = OutgoingHead(method, target, fields, self._owners, transform.plugin, self._judged)
            try:
                said = transform.apply(exchange, outgoing)
            except BaseException as exc:  # it is plain code: nobody can have cancelled it
                raise StepFailed(transform.plugin, "transform_request", describe_error(exc)) from exc
            if said is not None:
                close = getattr(said, "close", None)  # a coroutine nobody will await
                if close is not None:
                    close()
                raise StepFailed(transform.plugin, "transform_request", f"returned {type(said).__name__}")
        return fields


_FIELD = b": ".join
_FORWARDED: dict[tuple[str, str, bytes], list[RawHeader]] = {}
_REMEMBERED = 1024
# A connection says the same each time. What it says comes from clients, so the table stops growing instead of evicting.


def _forwarded(exchange: Exchange) -> Sequence[RawHeader]:
    """Who is calling, by the connection alone. A `forwarding` plugin that owns these names says it instead."""
    origin, authority = exchange.origin, exchange.authority
    key = (origin.peer.host if origin is not None else exchange.client_address, exchange.scheme, authority)
    said = _FORWARDED.get(key)
    if said is None:
        address, scheme = key[0].encode("latin-1"), key[1].encode()
        _, colon, port = authority.rpartition(b":")
        if not colon or not port.isdigit():
            port = b"443" if scheme == b"https" else b"80"
        said = [(b"x-forwarded-for", address), (b"x-real-ip", address)] if address else []
        said += [(b"x-forwarded-host", authority), (b"x-forwarded-proto", scheme), (b"x-forwarded-port", port)]
        if len(_FORWARDED) < _REMEMBERED:
            _FORWARDED[key] = said
    return said


def host_field(upstream: Upstream) -> bytes:
    """The upstream's own Host: its port only where it is not the scheme's."""
    usual = {"http": 80, "https": 443}.get(upstream.scheme)
    host, port = upstream.address
    if port == usual:
        return (f"[{host}]" if ":" in host else host).encode("idna" if not host.isascii() else "ascii")
    return str(Address(host, port)).encode("ascii")


def custom_headers(upstream: Upstream, owners: dict[bytes, str]) -> list[RawHeader]:
    """An operator's own fields, without reserved and owned names.

    Raises:
        RouteRefused: a name or a value that no field can carry.
    """
    kept: list[RawHeader] = []
    for name, value in upstream.custom_headers:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise RouteRefused(f"the custom header {name.decode('latin-1')!r} cannot be sent")
        folded = fold(name)
        if folded not in owners and not folded.startswith(RESERVED_PREFIX):
            kept.append((name.lower(), value))
    return kept
