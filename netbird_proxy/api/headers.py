"""Header fields as a proxy must treat them: in order, with duplicates, and with every spelling of a reserved name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import TypeVar

from netbird_host.tables import BoundedTable

RawHeader = tuple[bytes, bytes]

RESERVED_PREFIX = b"x-netbird-"
"""Everything that folds to this is the core's, plugin or no plugin."""

_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_.", b"abcdefghijklmnopqrstuvwxyz--")
_REMEMBERED = 4096
_NAME = itemgetter(0)
V = TypeVar("V")


class NameCache(BoundedTable[bytes, V]):
    """What follows from a field's name, worked out once for each name. `table[name]` is one look-up."""

    __slots__ = ("_work_out",)

    def __init__(self, work_out: Callable[[bytes], V], limit: int = _REMEMBERED) -> None:
        super().__init__(limit)
        self._work_out = work_out

    def __missing__(self, name: bytes) -> V:
        return self.keep(name, self._work_out(name))


FOLDED: NameCache[bytes] = NameCache(lambda name: name.translate(_FOLD))
"""Name → folded name, see `fold`; for loops that cannot afford the call."""


def fold(name: bytes) -> bytes:
    """The name under which aliases meet: lower case, with `_` and `.` read as `-`.

    CGI-style upstreams read `X_NetBird_User` and `X-NetBird-User` as one variable, and some map dots the same way, so
    whoever guards the one must guard the others.
    """
    return FOLDED[name]


def is_reserved(name: bytes) -> bool:
    """Whether a name, under any alias, belongs to the core for ever."""
    return fold(name).startswith(RESERVED_PREFIX)


class Headers:
    """Header fields in the order they came, duplicates kept. Names are lower case; values are raw bytes.

    Read-only: a step sees a request's head, it does not edit it. `raw` is shared, not copied.
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
        """The comma-separated list members of all lines of a name, trimmed, lower case, empty ones dropped."""
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
    """No values, for a name that is bytes. A text is never there, so whoever asks for one would not notice."""
    if not isinstance(name, bytes):
        raise TypeError(f"the header name {name!r} is {type(name).__name__}: write it in bytes")
    return []


def without(raw: Iterable[RawHeader], folded_names: frozenset[bytes]) -> list[RawHeader]:
    """The fields whose folded name is not among the given ones and not reserved, in order."""
    return [
        (name, value)
        for name, value in raw
        if (folded := fold(name)) not in folded_names and not folded.startswith(RESERVED_PREFIX)
    ]


__all__ = [
    "Headers",
    "fold",
]
