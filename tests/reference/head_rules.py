"""The rules that a request head must meet before it is used. No I/O, no parser, no server.

The parser accepts more than a proxy may forward: a head that an upstream reads differently is an attack. Every head is
therefore checked here, by our own protocol on the raw bytes, and by `check_scope` under a foreign server, as far as an
ASGI scope still shows them.

Refused beyond RFC 9112:
- a path that some reader takes for another path: dot segments (encoded, with `;parameters`, or between encoded
  separators), NUL, overlong UTF-8, invalid escapes (routing judges encoded separators, because some services need
  them); and the raw bytes `\\`, `"`, `<`, `>` and backtick, which browsers encode.
  `|`, `^`, `{`, `}`, `[` and `]` are not allowed in RFC 3986's path either, but common clients send them and no reader
  misreads them, so they pass. `//` at the start is a path, never an authority.
- CONNECT, which requests a tunnel, and TRACE, with which an upstream returns the forwarded head: custom headers of the
  operator, which may be credentials, and the caller's identity.
- in a query only bytes that a request line cannot carry, and `#`: a query is not routed, and clients send `"` and `%`.
- a framing field in any but its plain form (`Content-Length: 03`, `Transfer-Encoding: CHUNKED`), and names that
  CGI-style upstreams fold to a framing field (`Transfer_Encoding`).

Accepted on purpose: bytes above 0x7f in other fields' values (opaque by RFC 9110), chunk extensions and empty lines
before a request (the parser drops both), two spaces on the request line (the line is rewritten).
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
"""Kind of a name that folds to a framing field but is spelled differently."""

_FRAMING_KINDS: dict[bytes, int] = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"expect": EXPECT,
    b"connection": CONNECTION,
    b"proxy-connection": CONNECTION,  # the parser keeps a connection alive for it, too
}

FramingField = tuple[int, bytes]
"""A field that the proxy interprets: its kind, and its value exactly as received."""


class HeadRefused(Exception):
    """The head violates a rule.

    Attributes:
        status: status of the answer.
        reason: stable, from a bounded set, for the counter and the log line: `host_missing`.
        method, target: the request's, as far as they were parsed; else empty.
        exchange: the id under which the request is remembered; empty until then.
    """

    method = ""
    target = b""
    exchange = ""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Framing(NamedTuple):
    """The values of the fields that decide host and framing.

    Attributes:
        length: length of the body in bytes; -1 for a chunked body.
        expects: the client waits for `100 Continue`.
    """

    host: bytes
    length: int
    expects: bool


# Names ----------------------------------------------------------------------------------------------------------------

_KNOWN_LIMIT = 4096
KNOWN: BoundedTable[bytes, tuple[bytes, int]] = BoundedTable(_KNOWN_LIMIT)
"""Cache: raw field name → (lower case, kind)."""


def learn(name: bytes) -> tuple[bytes, int]:
    """The lower-case form of a field name, and its kind. Cached in KNOWN."""
    lower = name.lower()
    kind = _FRAMING_KINDS.get(lower, ORDINARY)
    if kind == ORDINARY and _FRAMING_KINDS.get(fold(lower)) in (LENGTH, CODING):
        kind = ALIAS
    return KNOWN.keep(name, (lower, kind))


# Fields ---------------------------------------------------------------------------------------------------------------

_AUTHORITY = re.compile(
    rb"(?:([A-Za-z0-9_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\.?)|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?"
)
_AUTHORITY_BYTES = 261  # a name of 255 and the longest port
VALID_HOSTS: BoundedTable[bytes, None] = BoundedTable(_KNOWN_LIMIT)  # cache of valid values
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_BREAK = re.compile(rb"[\r\n\0]")


def is_authority(value: bytes) -> bool:
    """True for `host` or `host:port`: a name, an IPv4 address or a bracketed IPv6 address, without a user part."""
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
    """Read the framing fields: a single Host, a single length, and nothing that another reader could read differently.

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
        # Also on HTTP/1.0, where RFC 9112 allows its absence: routing needs a host.
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
    """Refuse a path that a reader between the proxy and the upstream's file system could take for another path.

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
        target: the target as received on the request line.
        host: the Host field, already checked.

    Raises:
        HeadRefused: the method is CONNECT or TRACE, or the target is not in origin form, not `*` with OPTIONS, and not
            absolute with the same authority.
    """
    if method in _REFUSED_METHODS:
        # For every form of target that the parser accepts.
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


def same_authority(scheme: bytes, authority: bytes, other: bytes) -> bool:
    """True if two valid authorities are equal, apart from case, a trailing dot and the scheme's default port."""
    return authority == other or _folded_authority(scheme, authority) == _folded_authority(scheme, other)


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


# Under a foreign server -----------------------------------------------------------------------------------------------


def check_scope(scope: dict[str, Any]) -> str | None:
    """Check the head in an HTTP or websocket scope. Returns the reason for a refusal with 400, or None.

    A foreign server has already dropped the authority of an absolute target and a fragment, and may have added trailers
    to the fields, which cannot be detected here. Without `raw_path` there are no bytes to authorize: refused.
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
        # A server for HTTP/2 or HTTP/3 may accept bytes in fields that end a line in HTTP/1.1.
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
    # HTTP/2 and HTTP/3 servers pass `:authority` as Host, and have no transfer codings; the rest is checked as 1.1.
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
