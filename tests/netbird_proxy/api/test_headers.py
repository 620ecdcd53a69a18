"""Header fields: order, duplicates, folding, and tables that clients cannot fill."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_http import NotTheOwner, OutgoingHead
from netbird_proxy.api.headers import Headers, NameCache, fold, is_reserved, without

RAW = [(b"a", b"1, two ,,"), (b"b", b"x"), (b"a", b"Three")]


def test_fields_keep_order_and_duplicates() -> None:
    """The first value, all values, list members, and what is there."""
    headers = Headers(RAW)
    assert headers.get(b"a") == b"1, two ,,"
    assert headers.get(b"c") is None
    assert headers.get_all(b"a") == [b"1, two ,,", b"Three"]
    assert headers.tokens(b"a") == [b"1", b"two", b"three"]
    assert b"b" in headers
    assert b"c" not in headers
    assert list(headers) == RAW
    assert len(headers) == 3
    assert len(Headers()) == 0


def test_values_stay_out_of_its_repr() -> None:
    """They may be credentials, and a repr ends up in logs."""
    assert repr(Headers([(b"authorization", b"secret")])) == "Headers([b'authorization'])"


@given(st.binary(max_size=30))
def test_folding_folds_once(name: bytes) -> None:
    """What is folded folds to itself, and case makes no difference."""
    assert fold(fold(name)) == fold(name)
    assert fold(name.upper()) == fold(name.lower())


def test_reserved_under_every_alias() -> None:
    """The prefix is the core's; a name that only begins alike is not."""
    assert is_reserved(b"X_NetBird.User")
    assert not is_reserved(b"x-netbirds")
    assert without([(b"X_NETBIRD-A", b"1"), (b"Re_Mote", b"1"), (b"b", b"1")], frozenset((b"re-mote",))) == [
        (b"b", b"1")
    ]


def test_table_stops_growing() -> None:
    """Names come from clients: beyond the limit each is worked out anew, and none is forgotten."""
    asked: list[bytes] = []

    def length(name: bytes) -> int:
        asked.append(name)
        return len(name)

    table = NameCache(length, 2)
    assert [table[name] for name in (b"a", b"bb", b"ccc", b"ccc", b"a")] == [1, 2, 3, 3, 1]
    assert asked == [b"a", b"bb", b"ccc", b"a"]  # full, it begins anew, and what comes then is remembered
    assert len(table) == 2


def outgoing(owner: str = "mine") -> OutgoingHead:
    fields = [(b"x-a", b"1"), (b"x_a", b"2"), (b"b", b"3")]
    return OutgoingHead(b"GET", b"/", fields, {b"x-a": "mine", b"host": "core"}, owner)


@pytest.mark.parametrize("name", ["headers", "method", "owner", "owners", "target"])
def test_promise_2_a_transform_changes_fields_by_its_methods_alone(name: str) -> None:
    """What it sees is a copy, and whose it is cannot be set: nothing gets past ownership and the check of bytes."""
    head = outgoing("other")
    with pytest.raises(AttributeError):
        setattr(head, name, "mine")
    with pytest.raises(AttributeError):
        head.headers.append((b"x-netbird-user", b"a\r\nx: 1"))  # type: ignore[attr-defined]
    assert head.headers == ((b"x-a", b"1"), (b"x_a", b"2"), (b"b", b"3"))


@pytest.mark.parametrize(("name", "value", "wrong"), [("x-b", b"1", "'x-b' is str"), (b"x-b", "1", "b'x-b' is str")])
def test_header_that_is_no_bytes_has_its_sentence(name: Any, value: Any, wrong: str) -> None:
    """A common slip, told with its cure."""
    for change in (outgoing().set, outgoing().add):
        with pytest.raises(TypeError, match=f"{wrong}: write it in bytes"):
            change(name, value)


def test_owner_replaces_several_names_at_once() -> None:
    """Under every alias, and only what it named; judged for each owner, however often the same names are asked for."""

    def again(owner: str) -> OutgoingHead:
        owners = {b"x-a": "mine", b"x-b": "mine", b"host": "core"}
        fields = [(b"x-a", b"1"), (b"X_A", b"2"), (b"b", b"3")]
        return OutgoingHead(b"GET", b"/", fields, owners, owner)

    for _ in range(2):
        head = again("mine")
        head.replace((b"X-A", b"x-b"), [(b"x_b", b"new"), (b"X-A", b"too")])
        assert head.headers == ((b"b", b"3"), (b"x_b", b"new"), (b"x-a", b"too"))
        with pytest.raises(ValueError, match="not among the names"):
            head.replace((b"x-b",), [(b"x-a", b"1")])
        with pytest.raises(ValueError, match="cannot carry"):
            head.replace((b"x-b",), [(b"x-b", b"1\r\nx-a: 2")])
        with pytest.raises(NotTheOwner):
            again("other").replace((b"X-A", b"x-b"), [])


def test_owner_sets_and_deletes_under_every_alias() -> None:
    """What the owner sets is the only line that folds to the name."""
    head = outgoing()
    head.set(b"X-A", b"new")
    assert head.headers == ((b"b", b"3"), (b"x-a", b"new"))
    assert head.get(b"X-A") == b"new"
    head.set_or_delete(b"X_A", None)
    assert head.headers == ((b"b", b"3"),)
    assert head.get(b"x-a") is None
    head.set_or_delete(b"x-a", b"again")
    head.add(b"x-a", b"more")
    assert head.headers == ((b"b", b"3"), (b"x-a", b"again"), (b"x-a", b"more"))


@pytest.mark.parametrize("name", [b"x-a", b"X_A", b"Host", b"x-netbird-user", b"X_NetBird.Any"])
def test_nobody_else_sets_or_deletes(name: bytes) -> None:
    """Another plugin's, the core's, and reserved names that nobody owns."""
    for change in (
        lambda head: head.set(name, b""),
        lambda head: head.add(name, b""),
        lambda head: head.delete(name),
        lambda head: head.set_or_delete(name, None),
    ):
        for owner in ("other", ""):
            head = outgoing(owner)
            with pytest.raises(NotTheOwner):
                change(head)
            assert head.headers == outgoing().headers


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"", b"1"), (b"a b", b"1"), (b"a:", b"1"), (b"a\r\nb", b"1"), (b"a", b"1\r"), (b"a", b"1\n2"), (b"a", b"\0")],
)
def test_field_that_would_break_the_head_is_refused(name: bytes, value: bytes) -> None:
    """Neither a name nor a value carries a line break."""
    with pytest.raises(ValueError, match="cannot carry"):
        outgoing().add(name, value)
