"""What the upstream is told: exactly the identity's words, or nothing."""

from __future__ import annotations

import pytest

from netbird_identity_headers.proxy import _groups, _printable, _user
from netbird_proxy import Group, Identity, UserId


def who(email: str = "alice@example.com", *groups: Group, user: str | None = None) -> Identity:
    attributes = {} if user is None else {"user": user}
    return Identity(UserId("u1"), email=email, groups=groups, attributes=attributes)


def test_groups_are_named_in_order_and_all_is_among_them() -> None:
    """Sorted by name, joined with commas and nothing else."""
    groups = (Group("g2", "engineering"), Group("g1", "All"))

    assert _groups(who("a", *groups)) == b"All,engineering"


@pytest.mark.parametrize("name", ["a,b", "line\r\nX-Evil: 1", "café", "nul\0"])
def test_group_name_that_cannot_stand_in_a_list_is_left_out(name: str) -> None:
    """A comma would make one group two; the id is no substitute, since it is another's name space."""
    assert _groups(who("a", Group("g1", name), Group("g2", "ok"))) == b"ok"
    assert _groups(who("a", Group("g1", name))) is None


def test_group_without_a_name_is_told_by_its_id() -> None:
    """An id is better than silence where there is no name."""
    assert _groups(who("a", Group("g1", ""))) == b"g1"


@pytest.mark.parametrize("email", ["", "a\r\nb", "ü@example.com", "a\x7f"])
def test_user_that_cannot_be_a_field_value_is_not_told(email: str) -> None:
    """Nothing is encoded: the upstream would have to guess how."""
    assert _user(who(email), users_only=False) is None


def test_peer_without_a_user_can_be_left_out() -> None:
    """Where management tells the two apart, the operator may want people only."""
    assert _user(who("laptop", user=""), users_only=True) is None
    assert _user(who("laptop", user=""), users_only=False) == b"laptop"
    assert _user(who("alice@example.com", user="u1"), users_only=True) == b"alice@example.com"


def test_tab_is_the_only_control_byte_that_passes() -> None:
    """The byte rule of the wire: TAB and 0x20 to 0x7E."""
    allowed = {byte for byte in range(128) if _printable(chr(byte)) is not None}

    assert allowed == {9, *range(0x20, 0x7F)}
