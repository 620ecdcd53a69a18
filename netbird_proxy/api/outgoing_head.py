"""The request head that goes to the upstream, while the transforms of plugins work on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

from netbird_host.http_fields import TOKEN
from netbird_proxy.api.headers import FOLDED, NameCache, RawHeader, is_reserved

_SENT: NameCache[bytes] = NameCache(lambda name: name.lower() if TOKEN.fullmatch(name) else b"")
"""Name → as it is sent; empty for what is no name."""

_FOLD = FOLDED.__getitem__

_NAME = itemgetter(0)

_CR, _LF, _NUL = b"\r\n\0"  # numbers: bytes in bytes makes CPython raise and drop a TypeError first

OwnedNames = dict[tuple[str, tuple[bytes, ...]], frozenset[bytes]]
"""Cache: (owner, names) → the folded names, if all of them are this owner's to change."""

_OWNED_LIMIT = 256


class NotTheOwner(Exception):
    """A transform set a header that is the core's or another plugin's on this route."""


class OutgoingHead:
    """The request head that goes to the upstream, as one transform may change it.

    Names that another plugin owns, and `x-netbird-*` names that nobody owns, raise NotTheOwner. Names may be given in
    any case and are sent in lower case. Method, target and owner are fixed: what was authorized is what is sent.
    """

    __slots__ = ("_fields", "_method", "_owned", "_owner", "_owners", "_target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        fields: list[RawHeader],
        owners: Mapping[bytes, str],
        owner: str = "",
        owned: OwnedNames | None = None,
    ) -> None:
        """Args:
        fields: changed in place, by the methods of this object alone.
        owners: folded name → plugin id.
        owner: id of the plugin whose transform gets this object.
        owned: what was found under these owners before, for heads of one route to share.
        """
        self._method = method
        self._target = target
        self._fields = fields
        self._owners = owners
        self._owner = owner
        self._owned = {} if owned is None else owned

    @property
    def method(self) -> bytes:
        return self._method

    @property
    def target(self) -> bytes:
        """Path and query, as they stand on the request line."""
        return self._target

    @property
    def headers(self) -> tuple[RawHeader, ...]:
        """The fields as they stand now, in order. A copy."""
        return tuple(self._fields)

    def get(self, name: bytes) -> bytes | None:
        name = name.lower()
        for key, value in self._fields:
            if key == name:
                return value
        return None

    def set(self, name: bytes, value: bytes) -> None:
        """Put one line of this name where there may be none or several. ValueError for bytes a field cannot carry."""
        self.replace((name,), ((name, value),))

    def add(self, name: bytes, value: bytes) -> None:
        """Append a line. ValueError for bytes a field cannot carry."""
        self._check(name)
        self._append(((name, value),))

    def delete(self, *names: bytes) -> None:
        """Drop every line that folds to one of these names."""
        self.replace(names, ())

    def replace(self, names: tuple[bytes, ...], lines: Sequence[RawHeader]) -> None:
        """Put these lines, each of one of the names, where there may be others of any of them.

        `set` and `delete` for several names in one go. ValueError for a line of another name, and as in `set`.
        """
        folded = self._owned.get((self._owner, names)) or self._judge(names)
        # All of the search is in C: every owner does this on every head, and nearly never finds anything.
        if not folded.isdisjoint(map(_FOLD, map(_NAME, self._fields))):
            self._fields[:] = [pair for pair in self._fields if FOLDED[pair[0]] not in folded]
        for line in lines:
            if FOLDED[line[0]] not in folded:
                raise ValueError(f"{line[0]!r} is none of the names that were to be replaced")
        self._append(lines)

    def set_or_delete(self, name: bytes, value: bytes | None) -> None:
        """The one thing an owner may do: say it, or make sure that nobody does."""
        if value is None:
            self.delete(name)
        else:
            self.set(name, value)

    def _append(self, lines: Sequence[RawHeader]) -> None:
        for name, value in lines:
            if not isinstance(value, bytes):
                raise TypeError(f"the value of header {name!r} is {type(value).__name__}: write it in bytes")
            sent = _SENT[name]
            if not sent or _CR in value or _LF in value or _NUL in value:
                raise ValueError(f"header {name!r} cannot carry its value")
            self._fields.append((sent, value))

    def _judge(self, names: tuple[bytes, ...]) -> frozenset[bytes]:
        """The folded names, if they are all this owner's to change. A plugin mostly names the same ones each time."""
        folded = frozenset([self._check(name) for name in names])
        if len(self._owned) >= _OWNED_LIMIT:
            self._owned.clear()
        self._owned[self._owner, names] = folded
        return folded

    def _check(self, name: bytes) -> bytes:
        """The folded name, if it is this owner's to change."""
        if not isinstance(name, bytes):
            raise TypeError(f"the header name {name!r} is {type(name).__name__}: write it in bytes")
        folded = FOLDED[name]
        owner = self._owners.get(folded)
        if owner is None:
            if is_reserved(name):
                raise NotTheOwner(f"{name.decode('latin-1')} is reserved and {self._owner or 'nobody'} does not own it")
        elif owner != self._owner:
            raise NotTheOwner(f"{name.decode('latin-1')} is owned by {owner}, not by {self._owner or 'nobody'}")
        return folded


__all__ = [
    "OutgoingHead",
]
