"""The response head for the client, while plugins' transforms change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from netbird_host.http_fields import TOKEN
from netbird_http import NotTheOwner
from netbird_proxy.api.headers import RawHeader, fold

_COOKIE = b"set-cookie"
_NOTHING: frozenset[bytes] = frozenset()


class ResponseHead:
    """The response head for the client, as a single transform may change it.

    A transform changes only the names that it owns on the route; all others raise NotTheOwner. Names may be given in
    any case and are sent in lower case. A change that raises has changed nothing. Once the transform has returned,
    each change raises RuntimeError.

    An answer of the proxy itself or of an endpoint (`own_answer`) keeps all its lines, and of these a transform sees
    only `Content-Type`. A change of a name that the answer already has is ignored. Names that it lacks are added,
    except `Location`, `Refresh`, `WWW-Authenticate` and those by which caches may keep it (`Cache-Control`, `Expires`
    and the like).

    Args:
        fields: the lines of the head, as far as the transform may see them; changed in place.
        owns: folded names that the transform may change.
        plugin: id of the plugin, for messages.
        keeps: folded names whose changes are ignored.
        may_set: called with the value of a `Set-Cookie` line; False for a cookie of the proxy or of another plugin.
    """

    __slots__ = ("_fields", "_keeps", "_may_set", "_open", "_own_answer", "_owns", "_plugin", "_status")

    def __init__(
        self,
        status: int,
        fields: list[RawHeader],
        *,
        owns: frozenset[bytes] = _NOTHING,
        plugin: str = "",
        own_answer: bool = False,
        keeps: frozenset[bytes] = _NOTHING,
        may_set: Callable[[bytes], bool] = lambda _value: True,
    ) -> None:
        self._status = status
        self._own_answer = own_answer
        self._fields = fields
        self._owns = owns
        self._plugin = plugin
        self._keeps = keeps
        self._may_set = may_set
        self._open = True

    @property
    def status(self) -> int:
        return self._status

    @property
    def own_answer(self) -> bool:
        """True for an answer of the proxy itself or of an endpoint; False for one of the upstream."""
        return self._own_answer

    @property
    def headers(self) -> tuple[RawHeader, ...]:
        """A copy of the present lines, in order."""
        return tuple(self._fields)

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of this name, in any case but not under an alias."""
        values = self.get_all(name)
        return values[0] if values else None

    def get_all(self, name: bytes) -> list[bytes]:
        """Return every value of this name, in order."""
        lower = _in_bytes("the header name", name).lower()
        return [value for key, value in self._fields if key.lower() == lower]

    def set(self, name: bytes, value: bytes) -> None:
        """Replace all lines of this name by this one. ValueError for bytes that a field cannot carry."""
        self.replace((name,), ((name, value),))

    def add(self, name: bytes, value: bytes) -> None:
        """Append a line. ValueError for bytes that a field cannot carry."""
        folded = self._own(name)
        self._check(folded, name, value)
        if folded not in self._keeps:
            self._fields.append((name.lower(), value))

    def delete(self, *names: bytes) -> None:
        """Remove every line whose name folds to one of these names."""
        self.replace(names, ())

    def replace(self, names: Iterable[bytes], lines: Iterable[RawHeader]) -> None:
        """Remove every line of these names, then append `lines`: `set` and `delete` for several names at once.

        ValueError for a line whose name is not among `names`, and as in `set`.
        """
        owned = {self._own(name) for name in names}
        appended: list[RawHeader] = []
        for name, value in lines:
            folded = fold(_in_bytes("the header name", name))
            if folded not in owned:
                raise ValueError(f"{name!r} is not among the names to replace")
            self._check(folded, name, value)
            appended.append((name.lower(), value))
        changed = owned - self._keeps
        self._fields[:] = [pair for pair in self._fields if fold(pair[0]) not in changed]
        self._fields += [pair for pair in appended if fold(pair[0]) in changed]

    def set_or_delete(self, name: bytes, value: bytes | None) -> None:
        """Set the field, or delete it where `value` is None, so that the upstream's value never remains."""
        self.replace((name,), () if value is None else ((name, value),))

    def seal(self) -> None:
        """Allow no further change. The core calls it when the transform has returned."""
        self._open = False

    def _own(self, name: bytes) -> bytes:
        """Return the folded name, if the transform may change it now."""
        if not self._open:
            raise RuntimeError("the transform has returned: it may change the head only while it runs")
        folded = fold(_in_bytes("the header name", name))
        if folded not in self._owns:
            raise NotTheOwner(f"{name.decode('latin-1')} is not owned by {self._plugin or 'nobody'} on this route")
        return folded

    def _check(self, folded: bytes, name: bytes, value: bytes) -> None:
        _in_bytes(f"the value of header {name!r}", value)
        if not TOKEN.fullmatch(name) or b"\r" in value or b"\n" in value or b"\0" in value:
            raise ValueError(f"header {name!r} cannot carry its value")
        if folded == _COOKIE and not self._may_set(value):
            raise NotTheOwner(f"a cookie of the proxy or of another plugin is not set by {self._plugin or 'nobody'}")


def _in_bytes(label: str, value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"{label} {value!r} is {type(value).__name__}: write it in bytes")
    return value


__all__ = ["ResponseHead"]
