"""Our cookies. `__Host-` ties each to this very host over TLS, so that no sibling domain can set one."""

from __future__ import annotations

from netbird_proxy import Headers

SESSION = b"__Host-nb_session"
ATTRIBUTES = b"; Path=/; HttpOnly; Secure; SameSite=Lax"


def find(headers: Headers, name: bytes) -> list[bytes]:
    """Every value that a cookie of this name has; more than one means that somebody planted one."""
    found: list[bytes] = []
    for field, line in headers.raw:
        if field == b"cookie" and line.find(name) >= 0:  # not `in`, for which CPython raises and drops a TypeError
            for part in line.split(b";") if line.find(b";") >= 0 else (line,):
                key, _, value = part.strip(b" \t").partition(b"=")
                if key == name:
                    found.append(value)
    return found


def set_cookie(name: bytes, value: bytes, max_age: int) -> tuple[bytes, bytes]:
    return b"set-cookie", b"%b=%b; Max-Age=%d%b" % (name, value, max_age, ATTRIBUTES)


def drop_cookie(name: bytes) -> tuple[bytes, bytes]:
    return set_cookie(name, b"", 0)
