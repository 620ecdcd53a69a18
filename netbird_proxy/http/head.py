"""The rules that a request head must meet before anything believes it. No I/O, no parser, no server.

The parser accepts more than a proxy may: what it lets through and an upstream reads differently is an attack. So every
head is judged here, by our own protocol on the raw bytes and, as far as an ASGI scope still shows them, by
`check_scope` for the application under somebody else's server.

What is refused, beyond RFC 9112:
- a path that means another path to somebody: dot segments (encoded, with `;parameters`, or between encoded
  separators), NUL, overlong UTF-8, escapes that are none (encoded separators are the routing's to judge: some services
  need them); and the raw bytes `\\`, `"`, `<`, `>` and backtick, which browsers encode.
  `|`, `^`, `{`, `}`, `[` and `]` are not in RFC 3986's path either, but common clients send them and nobody reads them
  as anything else, so they pass. `//` at the start is a path, never an authority.
- CONNECT, which asks for a tunnel, and TRACE, which has an upstream send back the head that we wrote: custom headers of
  the operator, which may be credentials, and what identifies the caller.
- in a query only what cannot stand on a request line, and `#`: it routes nothing, and people send `"` and `%` there.
- a framing field in any but its one plain form (`Content-Length: 03`, `Transfer-Encoding: CHUNKED`), and names that
  CGI-style upstreams fold to a framing field (`Transfer_Encoding`).

What passes on purpose: bytes above 0x7f in other fields' values (opaque by RFC 9110), chunk extensions and empty lines
before a request (the parser drops both), two spaces on the request line (it is written anew).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from netbird_host.http_fields import TOKEN
from netbird_host.tables import BoundedTable
from netbird_proxy.api.headers import RawHeader, fold

ORDINARY: Final = 0
HOST: Final = 1
LENGTH: Final = 2
CODING: Final = 3
EXPECT: Final = 4
CONNECTION: Final = 5
ALIAS: Final = 6
"""A name that folds to a framing field without being it."""

_MARKS: dict[bytes, int] = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"expect": EXPECT,
    b"connection": CONNECTION,
    b"proxy-connection": CONNECTION,  # the parser keeps a connection alive for it, too
}

FramingField = tuple[int, bytes]
"""A field that decides something, by kind, with its value exactly as it came."""


class HeadRefused(Exception):
    """The head breaks a rule.

    Attributes:
        status: what the client is answered.
        reason: stable and one of a bounded set, for the counter and the log line: `host_missing`.
        method, target: what is known of the request; empty where the head did not get that far.
        exchange: the id under which it is remembered; empty until then.
    """

    method = ""
    target = b""
    exchange = ""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Framing(NamedTuple):
    """What the deciding fields say.

    Attributes:
        length: of the body in bytes; -1 when it is chunked.
        expects: the client waits for `100 Continue`.
    """

    host: bytes
    length: int
    expects: bool


# Names ----------------------------------------------------------------------------------------------------------------

_KNOWN_LIMIT = 4096
KNOWN: BoundedTable[bytes, tuple[bytes, int]] = BoundedTable(_KNOWN_LIMIT)
# Raw name → (lower case, kind).


def learn(name: bytes) -> tuple[bytes, int]:
    """The lower-case form of a field name and its kind; remembered in KNOWN."""
    lower = name.lower()
    kind = _MARKS.get(lower, ORDINARY)
    if kind == ORDINARY and _MARKS.get(fold(lower)) in (LENGTH, CODING):
        kind = ALIAS
    return KNOWN.keep(name, (lower, kind))


# Fields ---------------------------------------------------------------------------------------------------------------

_AUTHORITY = re.compile(
    rb"(?:([A-Za-z0-9_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\.?)|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?"
)
_AUTHORITY_BYTES = 261  # a name of 255 and the longest port
VALID_HOSTS: BoundedTable[bytes, None] = BoundedTable(_KNOWN_LIMIT)  # those met before
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_BREAK = re.compile(rb"[\r\n\0]")


def is_authority(value: bytes) -> bool:
    """Whether this is `host` or `host:port`: a name, an IPv4 address or a bracketed IPv6 address; no user part."""
    if value in VALID_HOSTS:
        return True
    match = _AUTHORITY.fullmatch(value) if len(value) <= _AUTHORITY_BYTES else None
    if match is None:
        return False
    _, v6, port = match.groups()
    if v6 is not None:
        try:
            ipaddress.IPv6Address(v6.decode("ascii"))
        except ValueError:
            return False
    if port is not None and not 0 < int(port) <= 65535:
        return False
    VALID_HOSTS.keep(value, None)
    return True


def check_framing_fields(version: str, framing_fields: Iterable[FramingField]) -> Framing:
    """Read the deciding fields: one Host, one length, nothing that another reader could understand differently.

    Raises:
        HeadRefused
    """
    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    expected = False
    for kind, value in framing_fields:
        if kind == HOST:
            if host is not None:
                raise HeadRefused("host_repeated")
            host = value
        elif kind == LENGTH:
            if length is not None:
                raise HeadRefused("length_repeated")
            length = value
        elif kind == CODING:
            if coding is not None:
                raise HeadRefused("coding_repeated")
            coding = value
        elif kind == EXPECT:
            if value.lower() != b"100-continue" or expected:
                raise HeadRefused("expectation", 417)
            expected = True
        elif kind == ALIAS:
            raise HeadRefused("framing_alias")
    expects = expected and version == "1.1"
    if host is None:
        # Also on 1.0, where RFC 9112 lets it be absent: without it there is nothing to route by.
        raise HeadRefused("host_missing")
    if host not in VALID_HOSTS and not is_authority(host):
        raise HeadRefused("host_invalid")
    if coding is not None:
        if length is not None:
            raise HeadRefused("length_and_coding")
        if version != "1.1" or coding != b"chunked":
            raise HeadRefused("coding")
        return Framing(host, -1, expects)
    if length is None:
        return Framing(host, 0, False)
    if not _LENGTH.fullmatch(length):
        raise HeadRefused("length")
    octets = int(length)
    return Framing(host, octets, expects and octets > 0)


# Target ---------------------------------------------------------------------------------------------------------------

_REFUSED_METHODS: Final = {b"CONNECT": "method_connect", b"TRACE": "method_trace"}
_ORIGIN_FORM = re.compile(rb"(/[!$-;=@A-\[\]^_a-z{|}~]*)(?:\?([!\"$-~]*))?")
_ABSOLUTE_FORM = re.compile(rb"([Hh][Tt][Tt][Pp][Ss]?)://([^/?#]*)(.*)", re.DOTALL)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_SEPARATOR = re.compile(rb"%(?:2[fF]|5[cC])")
_OVERLONG = re.compile(rb"%[cC][01]%[89aAbB]")
_PERCENT: Final = 0x25  # `b"%" in path` makes CPython raise and drop a TypeError first: twenty times slower than an int
_PARAMETERS = re.compile(rb";|%3[bB]")


def judge_path(path: bytes) -> None:
    """Refuse a path that somebody between here and the upstream's file system would read as another one.

    Raises:
        HeadRefused
    """
    if _PERCENT in path:
        if _BAD_ESCAPE.search(path):
            raise HeadRefused("path_escape")
        if path.find(b"%00") >= 0:
            raise HeadRefused("path_nul")
        if _OVERLONG.search(path):
            raise HeadRefused("path_overlong")
        path = _ENCODED_SEPARATOR.sub(b"/", path.replace(b"%2e", b".").replace(b"%2E", b"."))
    if path.find(b"/.") >= 0:
        for segment in path.split(b"/"):
            # `/..;x/` is `/../` to servlet containers.
            if segment[:1] == b"." and _PARAMETERS.split(segment, 1)[0] in (b".", b".."):
                raise HeadRefused("path_dots")


def judge_target(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """The raw path and the raw query of a request target.

    Args:
        target: as it stood on the request line.
        host: the Host field, already judged.

    Raises:
        HeadRefused: the method is CONNECT or TRACE, or the target is not in origin form, not `*` with OPTIONS, and not
            absolute with the same authority.
    """
    if method in _REFUSED_METHODS:
        # In whatever form the parser let its target through.
        raise HeadRefused(_REFUSED_METHODS[method])
    match = _ORIGIN_FORM.fullmatch(target)
    if match is None:
        if target == b"*" and method == b"OPTIONS":
            return b"*", b""
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        if absolute is None:
            raise HeadRefused(_why_no_target(target))
        scheme, authority, rest = absolute.groups()
        if not is_authority(authority):
            raise HeadRefused("authority_invalid")
        if not same_authority(scheme.lower(), authority, host):
            raise HeadRefused("authority_mismatch")
        origin = rest if rest[:1] == b"/" else b"/" + rest
        match = _ORIGIN_FORM.fullmatch(origin)
        if match is None:
            raise HeadRefused(_why_no_target(origin))
    path, query = match.groups()
    if _PERCENT in path or path.find(b"/.") >= 0:
        judge_path(path)
    return path, query or b""


def same_authority(scheme: bytes, one: bytes, other: bytes) -> bool:
    """Whether two valid authorities name the same place: case, a trailing dot and the scheme's own port aside."""
    return one == other or _folded_authority(scheme, one) == _folded_authority(scheme, other)


def _folded_authority(scheme: bytes, authority: bytes) -> tuple[bytes, bytes]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return authority, b""
    name, v6, port = match.groups()
    default = b"443" if scheme == b"https" else b"80"
    return (name.lower().rstrip(b".") if name is not None else b"[" + v6.lower() + b"]"), (port or default).lstrip(b"0")


def _why_no_target(target: bytes) -> str:
    if b"#" in target:
        return "target_fragment"
    return "target_bytes" if target[:1] == b"/" else "target_form"


# Under a server that is not ours --------------------------------------------------------------------------------------


def check_scope(scope: dict[str, Any]) -> str | None:
    """Judge what an HTTP or websocket scope still shows of its head; the reason it must be refused with 400, or None.

    A foreign server has already dropped an absolute target's authority and a fragment, and may have put trailers among
    the fields: those cannot be seen here. A server without `raw_path` shows no bytes to authorize, so it is refused.
    """
    try:
        _judge_scope(scope)
    except HeadRefused as refused:
        return refused.reason
    except (KeyError, TypeError, ValueError, AttributeError):
        return "scope_malformed"
    return None


def _judge_scope(scope: dict[str, Any]) -> None:
    path: bytes | None = scope.get("raw_path")
    if path is None:
        raise HeadRefused("raw_path_missing")
    version: str = scope["http_version"]
    headers: Sequence[RawHeader] = scope["headers"]
    framing_fields: list[FramingField] = []
    upgrade = connection_upgrade = False
    for name, value in headers:
        # A server that frames fields by length (HTTP/2, HTTP/3) may let through what ends a line of HTTP/1.1.
        if not TOKEN.fullmatch(name):
            raise HeadRefused("field_name")
        if _BREAK.search(value):
            raise HeadRefused("field_value")
        lower, kind = KNOWN.get(name) or learn(name)
        if kind:
            framing_fields.append((kind, value))
            if lower == b"connection":
                connection_upgrade = connection_upgrade or b"upgrade" in value.lower()
        elif lower == b"upgrade":
            upgrade = True
    # HTTP/2 and 3 servers hand over `:authority` as Host and have no transfer codings; what is left is judged as 1.1.
    framing = check_framing_fields("1.0" if version == "1.0" else "1.1", framing_fields)
    if upgrade and connection_upgrade and framing.length:
        raise HeadRefused("upgrade_body")
    query: bytes = scope.get("query_string", b"")
    method: str = scope.get("method", "GET")
    if not TOKEN.fullmatch(method.encode("latin-1")):
        raise HeadRefused("method_invalid")
    judge_target(method.encode("latin-1"), path + b"?" + query if query else path, framing.host)


__all__ = [
    "KNOWN",
    "Framing",
    "FramingField",
    "HeadRefused",
    "check_framing_fields",
    "check_scope",
    "is_authority",
    "judge_path",
    "judge_target",
    "learn",
    "same_authority",
]
