"""Serialization of responses: the head, and the framing of the body. No I/O."""

from __future__ import annotations

import http
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final

from netbird_host.http_fields import TOKEN
from netbird_host.tables import BoundedTable
from netbird_proxy.api.headers import RawHeader

STATUS_LINES: Final[dict[int, bytes]] = {
    status.value: b"HTTP/1.1 %d %s" % (status.value, status.phrase.encode("ascii")) for status in http.HTTPStatus
}

_PLAIN: Final = 0
_LENGTH: Final = 1
_CODING: Final = 2
_CONNECTION: Final = 3
_KINDS = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"keep-alive": _CODING,  # the listener sets it, so the application's is dropped too
}
_PREFIXES: BoundedTable[bytes, tuple[bytes, int]] = BoundedTable(4096)

_PASSED: set[bytes] = {b"content-length"}
_PASSED_LIMIT, _PASSED_BYTES = 4096, 64  # names, and bytes of each: upstreams choose them
_LOOKED_AT = (b"", 1)
_NAME = itemgetter(0)
_FIELD = b": ".join

UNKNOWN_LENGTH: Final = -1


class UnframeableResponse(Exception):
    """The application's response cannot be sent as it is."""


def status_line(status: int) -> bytes:
    line = STATUS_LINES.get(status)
    if line is None:
        if not 100 <= status <= 999:
            raise UnframeableResponse(f"{status} is not a status")
        line = b"HTTP/1.1 %d " % status
    return line


def field_lines(status: int, headers: Iterable[RawHeader]) -> tuple[list[bytes], int, bool]:
    """The pieces of the head (without the blank line), the declared length or UNKNOWN_LENGTH, and true for a close.

    The application's `transfer-encoding`, `connection` and `keep-alive` are left out, because the listener sets them.
    The length appears once, and only if the status may carry one.

    Raises:
        UnframeableResponse
    """
    pieces = [status_line(status)]
    length = UNKNOWN_LENGTH
    close = False
    for name, value in headers:
        prefix, kind = _PREFIXES.get(name) or _learn(name)
        if kind:
            if kind == _LENGTH:
                if not value.isdigit() or len(value) > 18:
                    raise UnframeableResponse("content-length is not a number")
                octets = int(value)
                if length == UNKNOWN_LENGTH:
                    length = octets
                    if status != 204:
                        pieces.append(prefix)
                        pieces.append(value)
                elif length != octets:
                    raise UnframeableResponse("content-length is repeated with another value")
            elif kind == _CONNECTION:
                close = close or b"close" in value.lower()
            continue
        pieces.append(prefix)
        pieces.append(value)
    return pieces, length, close


def plain_head(status: int, headers: Sequence[RawHeader], length: int) -> bytes | None:
    """A complete head with its blank line, if all fields are sent unchanged and declare exactly this length.

    None if the fields must be checked one by one: `field_lines` does that.
    """
    names = [*map(_NAME, headers)]
    if not _PASSED.issuperset(names) or names.count(b"content-length") != 1:
        for name in names:
            if len(name) <= _PASSED_BYTES and name == name.lower() and not _PREFIXES.get(name, _LOOKED_AT)[1]:
                if len(_PASSED) >= _PASSED_LIMIT:
                    _PASSED.clear()
                    _PASSED.add(b"content-length")
                _PASSED.add(name)  # `field_lines` has checked that it is an ordinary name
        return None
    if (b"content-length", b"%d" % length) not in headers:
        return None
    head = b"%b\r\n%b\r\n\r\n" % (status_line(status), b"\r\n".join(map(_FIELD, headers)))
    return checked(head, len(names) + 2)


def checked(head: bytes, lines: int) -> bytes:
    """The head, if it has exactly `lines` lines.

    A line break within a value would start another field, or another response.

    Raises:
        UnframeableResponse
    """
    if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * lines:
        raise UnframeableResponse("a field contains a line break or NUL")
    return head


def informational_head(status: int, headers: Iterable[RawHeader]) -> bytes:
    """A complete 1xx head."""
    pieces, _, _ = field_lines(status, headers)
    lines = len(pieces) // 2 + 2
    pieces.append(b"\r\n\r\n")
    return checked(b"".join(pieces), lines)


def switching_head(headers: Iterable[RawHeader]) -> bytes:
    """A complete 101 head. The bytes after it on the connection are not HTTP."""
    pieces, _, _ = field_lines(101, headers)
    lines = len(pieces) // 2 + 3
    pieces.append(b"\r\nconnection: Upgrade\r\n\r\n")
    return checked(b"".join(pieces), lines)


def _learn(name: bytes) -> tuple[bytes, int]:
    if not TOKEN.fullmatch(name):
        raise UnframeableResponse(f"{name!r} is not a field name")
    lower = name.lower()
    return _PREFIXES.keep(name, (b"\r\n" + lower + b": ", _KINDS.get(lower, _PLAIN)))
