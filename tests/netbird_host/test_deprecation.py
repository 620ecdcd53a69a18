"""Older names of things that plugins use."""

from __future__ import annotations

import pytest

from netbird_host.deprecation import older_arguments, older_name


class Lamp:
    bright = True
    lit = older_name("Lamp.lit", "bright")


@older_arguments(lit="bright")
def lamp(*, bright: bool = False) -> bool:
    return bright


def test_an_older_attribute_has_the_value_and_warns() -> None:
    """The warning names both."""
    with pytest.warns(DeprecationWarning, match=r"Lamp\.lit is now bright"):
        assert Lamp().lit is True


def test_an_older_argument_is_passed_on_and_warns() -> None:
    """The present name is passed without a warning."""
    with pytest.warns(DeprecationWarning, match="the argument lit is now bright"):
        assert lamp(lit=True) is True
    assert lamp(bright=True) is True
