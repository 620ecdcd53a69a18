"""The wall clock, in UTC. Durations elsewhere are measured on the loop's own clock."""

from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)
