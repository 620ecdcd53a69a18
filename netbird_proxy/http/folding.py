"""Folding of different spellings: hosts as the routing table compares them, paths as upstreams may read them.

Folded hosts are keys of the table. Folded paths are only compared, never sent.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import unquote_to_bytes

import idna

from netbird_host.tables import BoundedTable

_NAME = r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}"
_FOLDED_NAME = re.compile(_NAME)
_AUTHORITY = re.compile(rf"({_NAME})(?::[0-9]{{0,5}})?".encode())
_PORT = re.compile(r":[0-9]{0,5}$")
_HOSTS: BoundedTable[bytes, str] = BoundedTable(4096)


def fold_host(host: str) -> str:
    """The spelling under which hosts are compared: lower case, IDNA, without port and trailing dot.

    IPv6 literals keep their brackets and are compressed. Folding is idempotent.

    Raises:
        ValueError: not a host: empty, with user information, with a bad label, over 253 characters.
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
    """`fold_host` for a Host field as received, with its port. Fields are ASCII, since clients encode IDNA.

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
        _HOSTS.keep(authority, host)
    return host


_Fold = Callable[[bytes], bytes]


def _without_dots(path: bytes) -> bytes:
    if b"/." not in path:
        return path
    segments: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        if segment == b"..":
            del segments[-1:]
        elif segment != b".":
            segments.append(segment)
    return b"/" + b"/".join(segments)


def _as_text(path: bytes) -> bytes:
    """Normalize letters, as upstreams do that compare text without case or normalize Unicode."""
    if path.isascii():
        return path
    try:
        return unicodedata.normalize("NFKC", path.decode()).casefold().encode()
    except UnicodeError:
        return path


FOLDS: tuple[_Fold, ...] = (
    unquote_to_bytes,
    unquote_to_bytes,  # twice: some upstreams decode a path that a server in front of them has decoded
    _as_text,
    lambda path: path.replace(b"\\", b"/"),
    partial(re.compile(rb";[^/]*").sub, b""),
    partial(re.compile(rb"(?<![. \0])[. \0]++(?=/|\Z)(?<!/\.)(?<!/\.\.)").sub, b""),  # as Windows reads file names
    partial(re.compile(rb"//+").sub, b"/"),
    _without_dots,
    bytes.lower,
)
"""Transformations that upstreams apply to a path, in the order in which they apply them. Each upstream applies some."""

_SUSPICIOUS = re.compile(rb"[%;\\A-Z\x80-\xff \0]|//|/\.|\.(?:/|\Z)")
# Maximum size in bytes of all readings of one path together. A path that exceeds it is refused.
_MOST = 1 << 18


def readings(path: bytes, also: int = 0) -> Mapping[int, bytes] | None:
    """Every reading of a path: bits of `FOLDS` → the path for an upstream that applies these folds.

    Folds that change nothing are left out, except those in `also`. None if there are too many readings to compare.
    """
    forms = {0: path}
    if not also and not _SUSPICIOUS.search(path):
        return forms
    for bit, fold in enumerate(FOLDS):
        for applied, form in tuple(forms.items()):
            other = fold(form)
            if other != form or also >> bit & 1:
                forms[applied | 1 << bit] = other
        if len(forms) * len(path) > _MOST:
            return None
    return forms


def climbs(raw: bytes) -> bool:
    """True if dot segments, in any encoding, lead above the start of this path."""
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
