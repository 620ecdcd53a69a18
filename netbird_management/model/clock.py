"""The wall clock, in UTC. Other modules measure durations on the event loop's clock."""

from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)
