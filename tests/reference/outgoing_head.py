"""The oracle of `netbird_http.OutgoingHead`: the same rules in Python, as the product once had them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

from netbird_host.http_fields import TOKEN
from netbird_proxy.api.headers import FOLDED, NameCache, RawHeader, is_reserved

# Name → spelling that is sent; empty for text that is not a field name.
_SENT: NameCache[bytes] = NameCache(lambda name: name.lower() if TOKEN.fullmatch(name) else b"")
_FOLD = FOLDED.__getitem__

_NAME = itemgetter(0)

_CR, _LF, _NUL = b"\r\n\0"  # ints: for `bytes in bytes` CPython first raises and drops a TypeError

OwnedNames = dict[tuple[str, tuple[bytes, ...]], frozenset[bytes]]
"""Cache: (owner, names) → the folded names, if all of them are this owner's to change."""

_OWNED_LIMIT = 256


class NotTheOwner(Exception):
    """A transform set a header that belongs to the core or to another plugin on this route."""


class OutgoingHead:
    """The request head for the upstream, as a single transform may change it.

    Names that another plugin owns, and `x-netbird-*` names that nobody owns, raise NotTheOwner. Names may be given in
    any case and are sent in lower case. Method, target and owner cannot be changed: the authorized target is sent.
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
        owned: cache that the heads of one route share; see `OwnedNames`.
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
        """A copy of the present fields, in order."""
        return tuple(self._fields)

    def get(self, name: bytes) -> bytes | None:
        name = name.lower()
        for key, value in self._fields:
            if key == name:
                return value
        return None

    def set(self, name: bytes, value: bytes) -> None:
        """Replace all lines of this name by this one. ValueError for bytes that a field cannot carry."""
        self.replace((name,), ((name, value),))

    def add(self, name: bytes, value: bytes) -> None:
        """Append a line. ValueError for bytes that a field cannot carry."""
        self._check(name)
        self._append(((name, value),))

    def delete(self, *names: bytes) -> None:
        """Remove every line whose name folds to one of these names."""
        self.replace(names, ())

    def replace(self, names: tuple[bytes, ...], lines: Sequence[RawHeader]) -> None:
        """Remove every line of these names, then append `lines`: `set` and `delete` for several names at once.

        ValueError for a line whose name is not among `names`, and as in `set`.
        """
        folded = self._owned.get((self._owner, names)) or self._judge(names)
        # The search runs in C: every owner does this on every head, and nearly always without a match.
        if not folded.isdisjoint(map(_FOLD, map(_NAME, self._fields))):
            self._fields[:] = [pair for pair in self._fields if FOLDED[pair[0]] not in folded]
        for line in lines:
            if FOLDED[line[0]] not in folded:
                raise ValueError(f"{line[0]!r} is not among the names to replace")
        self._append(lines)

    def set_or_delete(self, name: bytes, value: bytes | None) -> None:
        """Set the field, or delete it where `value` is None, so that the client's value never remains."""
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
        """The folded names, if this owner may change all of them. Cached: a plugin mostly passes the same names."""
        folded = frozenset([self._check(name) for name in names])
        if len(self._owned) >= _OWNED_LIMIT:
            self._owned.clear()
        self._owned[self._owner, names] = folded
        return folded

    def _check(self, name: bytes) -> bytes:
        """The folded name, if this owner may change it; else NotTheOwner."""
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
