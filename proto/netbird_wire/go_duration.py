"""Durations as Go writes them: `300ms`, `1.5h`, `2m30s`. NetBird's environment and REST API use these texts."""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5
    "μs": 10**3,  # U+03BC
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"(\d+)?(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_LARGEST = 2**63 - 1


def parse_nanoseconds(text: str) -> int:
    """Read a duration exactly. ValueError for anything that Go would refuse too, a bare number (but 0) included."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total, position = 0, 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None or not (part[1] or part[2]):
            break
        unit, fraction = _UNITS[part[3]], part[2] or ""
        total += int(part[1] or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        position = part.end()
    if not rest or position < len(rest) or total > _LARGEST:
        raise ValueError(f"{text!r} is not a duration such as 300ms, 90s or 1h30m")
    return -total if text.startswith("-") else total


def format_nanoseconds(nanoseconds: int) -> str:
    """Write a duration as Go prints it: `1m30s`, `1.5s`, `100ms`, `1h0m0s`, `0s`."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if rest < _UNITS[unit] * 1000:
            return f"{sign}{_decimal(rest, _UNITS[unit])}{unit}"
    minutes, seconds = divmod(rest, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(seconds, _UNITS['s'])}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else f"{sign}{text}"


def parse_duration(text: str) -> float:
    """Read a duration into seconds. ValueError as `parse_nanoseconds`."""
    return parse_nanoseconds(text) / 10**9


def format_duration(seconds: float) -> str:
    """Write seconds as Go prints them, to the nanosecond."""
    return format_nanoseconds(round(seconds * 10**9))


def _decimal(amount: int, unit: int) -> str:
    whole, rest = divmod(amount, unit)
    fraction = str(rest).zfill(len(str(unit)) - 1).rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
