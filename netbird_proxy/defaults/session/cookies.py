"""Our cookies. `__Host-` ties each to this very host over TLS, so that no sibling domain can set one."""

from __future__ import annotations

from netbird_proxy import Headers

SESSION = b"__Host-nb_session"
ATTRIBUTES = b"; Path=/; HttpOnly; Secure; SameSite=Lax"


def line_of(headers: Headers) -> bytes:
    """All cookies on one line; several lines are one that was cut (RFC 9113 §8.2.3)."""
    joined = b""
    for name, line in headers.raw:
        if name == b"cookie":
            joined = b"%b; %b" % (joined, line) if joined else line
    return joined


def find(headers: Headers, name: bytes) -> list[bytes]:
    """Every value that a cookie of this name has; more than one means that somebody planted one."""
    parts = [part.strip(b" \t").partition(b"=") for part in line_of(headers).split(b";")]
    return [value for key, _, value in parts if key == name]


def set_cookie(name: bytes, value: bytes, max_age: int) -> tuple[bytes, bytes]:
    return b"set-cookie", b"%b=%b; Max-Age=%d%b" % (name, value, max_age, ATTRIBUTES)


def drop_cookie(name: bytes) -> tuple[bytes, bytes]:
    return set_cookie(name, b"", 0)
