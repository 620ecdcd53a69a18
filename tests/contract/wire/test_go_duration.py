"""Durations as Go reads and prints them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.go_duration import (
    format_duration,
    format_nanoseconds,
    parse_duration,
    parse_nanoseconds,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("300ms", 0.3),
        ("1.5h", 5400),
        ("2m30s", 150),
        ("90s", 90),
        (".5s", 0.5),
        ("1.s", 1),
        ("-1m", -60),
        ("+1m", 60),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("1h1m1s1ms1us1ns", 3661.001001001),
    ],
)
def test_reads_what_go_reads(text: str, seconds: float) -> None:
    """Every unit, fractions, signs and chains."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-", "5", "s", ".s", "1 s", "1s ", "1d", "1S", "١s", "1e3s", "--1s", "1s-1s", "9999999h", "1s5"]
)
def test_refuses_what_go_refuses(text: str) -> None:
    """A number without a unit above all: nobody can know what it means."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (90, "1m30s"),
        (3600, "1h0m0s"),
        (1.5, "1.5s"),
        (0.1, "100ms"),
        (0.0000015, "1.5µs"),
        (1e-9, "1ns"),
        (-90, "-1m30s"),
        (3661.5, "1h1m1.5s"),
        (300, "5m0s"),
        (10, "10s"),
    ],
)
def test_writes_what_go_writes(seconds: float, text: str) -> None:
    """`90s` comes back as `1m30s`."""
    assert format_duration(seconds) == text


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_what_is_written_is_read_back_exactly(nanoseconds: int) -> None:
    """To the nanosecond, over Go's whole range."""
    assert parse_nanoseconds(format_nanoseconds(nanoseconds)) == nanoseconds
