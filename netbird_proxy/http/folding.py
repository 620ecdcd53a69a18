"""Where two spellings of one place meet: hosts as the table compares them, paths as an upstream may read them.

Folded hosts are compared; folded paths are only ever compared, never sent.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote_to_bytes

import idna

_NAME = r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}"
_FOLDED_NAME = re.compile(_NAME)
_AUTHORITY = re.compile(rf"({_NAME})(?::[0-9]{{0,5}})?".encode())
_PORT = re.compile(r":[0-9]{0,5}$")
_HOSTS: dict[bytes, str] = {}
_REMEMBERED = 4096
# They come from clients, so it stops growing instead of evicting.


def fold_host(host: str) -> str:
    """The name under which a host is compared: lower case, IDNA, without port and trailing dot.

    IPv6 literals keep their brackets and are compressed. Folding what is folded changes nothing.

    Raises:
        ValueError: it is no host: empty, with user information, a bad label, more than 253 characters.
    """
    bare = host.strip() if host.isascii() else host
    if bare != host:
        raise ValueError(f"{host!r} is not a host: it has spaces around it")
    if bare.startswith("["):
        literal, bracket, port = bare[1:].partition("]")
        if not bracket or (port and not _PORT.fullmatch(port)) or "%" in literal:
            raise ValueError(f"{host!r} is not a host: a bad IPv6 literal")
        return f"[{ipaddress.IPv6Address(literal).compressed}]"
    bare = _PORT.sub("", bare).removesuffix(".")
    if bare.isascii():
        bare = bare.lower()
    else:
        try:
            bare = idna.encode(bare, uts46=True).decode("ascii").lower().removesuffix(".")
        except UnicodeError as exc:
            raise ValueError(f"{host!r} is not a host: {exc}") from exc
    if len(bare) > 253 or not _FOLDED_NAME.fullmatch(bare):
        raise ValueError(f"{host!r} is not a host")
    return bare


def fold_authority(authority: bytes) -> str:
    """`fold_host` for a Host field as it came, with its port. Fields are ASCII: nobody sends IDNA undone.

    Raises:
        ValueError: as `fold_host`.
    """
    host = _HOSTS.get(authority)
    if host is None:
        match = _AUTHORITY.fullmatch(authority)
        if match is not None and len(authority) <= 253:
            host = match[1].decode("ascii")
        else:
            host = fold_host(authority.decode("ascii"))
        if len(_HOSTS) < _REMEMBERED:
            _HOSTS[authority] = host
    return host


def fold_path(raw: bytes) -> bytes:
    """A path as a careless upstream might read it: decoded, `\\` as `/`, no parameters, no dot segments, lower case.

    More than servers usually do at once; whoever compares folded paths wants to hear of any way to read one.
    """
    segments: list[bytes] = []
    for whole in unquote_to_bytes(raw).replace(b"\\", b"/").lower().split(b"/"):
        segment = whole.partition(b";")[0]
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return b"/" + b"/".join(segments)


def climbs(raw: bytes) -> bool:
    """Whether dot segments, however they are encoded, lead above where this path starts."""
    depth = 0
    for whole in unquote_to_bytes(raw).replace(b"\\", b"/").split(b"/"):
        segment = whole.partition(b";")[0]
        if segment == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif segment not in (b"", b"."):
            depth += 1
    return False
