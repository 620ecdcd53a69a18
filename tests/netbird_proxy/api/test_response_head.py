"""The response head in the hands of a transform: it changes what it owns, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netbird_http import NotTheOwner
from netbird_proxy.api.response_head import ResponseHead

FIELDS = [(b"server", b"nginx"), (b"x-a", b"1"), (b"X_A", b"2"), (b"set-cookie", b"a=1")]
OWNED = frozenset((b"server", b"x-a", b"set-cookie"))


def head(owns: frozenset[bytes] = OWNED, **options: Any) -> ResponseHead:
    return ResponseHead(200, list(FIELDS), owns=owns, plugin="mine", **options)


def test_owner_sets_adds_and_deletes_under_every_alias() -> None:
    """A line that is set is the only one that folds to its name, and names are sent in lower case."""
    made = head()

    made.set(b"X-A", b"new")
    made.add(b"x_a", b"more")
    made.delete(b"Server")
    made.set_or_delete(b"Set-Cookie", None)

    assert made.headers == ((b"x-a", b"new"), (b"x_a", b"more"))
    made.set_or_delete(b"server", b"ours")
    assert (made.get(b"SERVER"), made.get_all(b"x-a"), made.get(b"x-b")) == (b"ours", [b"new"], None)


def test_several_names_are_replaced_at_once() -> None:
    """A line that is not among the names changes nothing at all."""
    made = head()

    with pytest.raises(ValueError, match="not among the names"):
        made.replace((b"server",), [(b"x-a", b"1")])
    assert made.headers == tuple(FIELDS)
    made.replace((b"server", b"x-a"), [(b"Server", b"ours")])

    assert made.headers == ((b"set-cookie", b"a=1"), (b"server", b"ours"))


CHANGES: list[Callable[[ResponseHead, bytes], None]] = [
    lambda made, name: made.set(name, b""),
    lambda made, name: made.add(name, b""),
    lambda made, name: made.delete(name),
    lambda made, name: made.set_or_delete(name, None),
    lambda made, name: made.replace((b"server", name), ()),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [b"x-b", b"Content-Length", b"x_netbird_user", b"Connection"])
def test_names_that_a_transform_does_not_own_stay(change: Callable[[ResponseHead, bytes], None], name: bytes) -> None:
    """Also a name that nobody owns, and also if other names of the same change are owned."""
    made = head()

    with pytest.raises(NotTheOwner):
        change(made, name)

    assert made.headers == tuple(FIELDS)


@pytest.mark.parametrize("value", [b"1\r\nx-b: 2", b"1\n", b"\r", b"a\0b"])
def test_values_that_break_a_head_are_refused(value: bytes) -> None:
    """CR, LF and NUL would start another line, or end the head."""
    made = head()

    for change in (made.set, made.add):
        with pytest.raises(ValueError, match="cannot carry"):
            change(b"x-a", value)

    assert made.headers == tuple(FIELDS)


def test_names_that_break_a_head_are_refused() -> None:
    """An owned name that folds differently from its bytes does not help either."""
    made = head(frozenset((b"x-a: 1\r\nx-b",)))

    with pytest.raises(ValueError, match="cannot carry"):
        made.add(b"x-a: 1\r\nx-b", b"2")


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.set("x-a", b"1"),
        lambda made: made.set(b"x-a", "1"),
        lambda made: made.add(b"x-a", 1),
        lambda made: made.delete("x-a"),
        lambda made: made.get("x-a"),
        lambda made: made.replace((b"x-a",), [("x-a", b"1")]),
    ],
)
def test_text_is_refused_with_a_sentence(change: Callable[[Any], None]) -> None:
    """The usual mistake is a `str`, which would match nothing."""
    with pytest.raises(TypeError, match="write it in bytes"):
        change(head())


def test_status_cannot_be_changed() -> None:
    """A transform changes lines; what it assigns to is read-only."""
    made: Any = head(own_answer=True)

    assert (made.status, made.own_answer) == (200, True)
    for name in ("status", "own_answer", "headers", "other"):
        with pytest.raises(AttributeError):
            setattr(made, name, 500)


@pytest.mark.parametrize("change", CHANGES)
def test_kept_head_changes_nothing_later(change: Callable[[ResponseHead, bytes], None]) -> None:
    """A plugin that keeps the object cannot change a head that was sent."""
    made = head()
    made.seal()

    with pytest.raises(RuntimeError, match="while it runs"):
        change(made, b"x-a")

    assert made.headers == tuple(FIELDS)


def test_cookies_of_others_are_not_set() -> None:
    """Neither as `Set-Cookie` nor under an alias; a change that is refused has changed nothing."""
    made = head(may_set=lambda value: not value.startswith(b"__Host-nb_"))

    made.add(b"Set-Cookie", b"mine=1")
    for name in (b"set-cookie", b"Set_Cookie"):
        for change in (made.set, made.add):
            with pytest.raises(NotTheOwner, match="cookie"):
                change(name, b"__Host-nb_session=x")

    assert made.get_all(b"set-cookie") == [b"a=1", b"mine=1"]


def test_names_that_are_kept_are_not_changed() -> None:
    """A change of a name that an answer of the proxy has is ignored; other names are changed."""
    made = head(keeps=frozenset((b"x-a",)))

    made.set(b"X_A", b"new")
    made.add(b"x-a", b"new")
    made.replace((b"x-a", b"server"), [(b"x-a", b"new"), (b"server", b"ours")])

    assert made.headers == ((b"x-a", b"1"), (b"X_A", b"2"), (b"set-cookie", b"a=1"), (b"server", b"ours"))
