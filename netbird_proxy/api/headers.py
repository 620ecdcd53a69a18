"""Header fields in order, with duplicates, and the folding of names under which all spellings of a name are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import TypeVar

from netbird_host.tables import BoundedTable

RawHeader = tuple[bytes, bytes]

RESERVED_PREFIX = b"x-netbird-"
"""Names that fold to this prefix belong to the core, with or without plugins."""

_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_.", b"abcdefghijklmnopqrstuvwxyz--")
_REMEMBERED = 4096
_NAME = itemgetter(0)
V = TypeVar("V")


class NameCache(BoundedTable[bytes, V]):
    """Cache of a value that depends only on a field's name. `cache[name]` computes it at most once for each name."""

    __slots__ = ("_work_out",)

    def __init__(self, work_out: Callable[[bytes], V], limit: int = _REMEMBERED) -> None:
        super().__init__(limit)
        self._work_out = work_out

    def __missing__(self, name: bytes) -> V:
        return self.keep(name, self._work_out(name))


FOLDED: NameCache[bytes] = NameCache(lambda name: name.translate(_FOLD))
"""Name → folded name, see `fold`; for hot loops that cannot afford a function call."""


def fold(name: bytes) -> bytes:
    """The spelling that all aliases of a name share: lower case, with `_` and `.` replaced by `-`.

    CGI-style upstreams read `X_NetBird_User` and `X-NetBird-User` as one variable, and some map dots the same way, so
    a rule for one spelling must cover the others.
    """
    return FOLDED[name]


def is_reserved(name: bytes) -> bool:
    """True for a name that belongs to the core, under any alias."""
    return fold(name).startswith(RESERVED_PREFIX)


class Headers:
    """Header fields in the order they came, duplicates kept. Names are lower case; values are raw bytes.

    Read-only: a step reads a request's head and cannot change it. `raw` is shared, not copied.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: list[RawHeader] | None = None) -> None:
        self.raw: list[RawHeader] = raw if raw is not None else []

    def get(self, name: bytes) -> bytes | None:
        """The first value of a lower-case name, or None."""
        for key, value in self.raw:
            if key == name:
                return value
        _must_be_bytes(name)
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a lower-case name, in order."""
        return [value for key, value in self.raw if key == name] or _must_be_bytes(name)

    def tokens(self, name: bytes) -> list[bytes]:
        """The comma-separated list members of all lines of a name: trimmed, in lower case, without empty members."""
        return [
            token for value in self.get_all(name) for part in value.split(b",") if (token := part.strip(b" \t").lower())
        ]

    def __contains__(self, name: bytes) -> bool:
        return name in map(_NAME, self.raw)

    def __iter__(self) -> Iterator[RawHeader]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        # Values may be credentials: a repr ends up in logs and assertion messages.
        return f"Headers({[name for name, _ in self.raw]!r})"


def _must_be_bytes(name: object) -> list[bytes]:
    """An empty list. TypeError for a name that is a `str`: it matches no field, and the mistake would go unnoticed."""
    if not isinstance(name, bytes):
        raise TypeError(f"the header name {name!r} is {type(name).__name__}: write it in bytes")
    return []


def without(raw: Iterable[RawHeader], folded_names: frozenset[bytes]) -> list[RawHeader]:
    """The fields whose folded name is neither in `folded_names` nor reserved, in order."""
    return [
        (name, value)
        for name, value in raw
        if (folded := fold(name)) not in folded_names and not folded.startswith(RESERVED_PREFIX)
    ]


__all__ = [
    "Headers",
    "fold",
]
