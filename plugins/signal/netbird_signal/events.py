"""Log events of the signal server: limits that were reached, keys that two addresses contest, and totals."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from netbird_signal.exchange import Exchange

REPORT_SECONDS: Final = 60.0
USUAL: Final = frozenset({"accepted", "receiver_away", "registered", "replaced", "taken_over"})
"""Counters that grow without any fault."""
log = logging.getLogger(__name__)


def report_contested(key: str, before: str, after: str) -> None:
    """Log that a key's stream moves to and fro. The key is public."""
    log.warning("signal.key_contested", extra={"key": key, "before": before, "after": after})


async def keep_reporting(exchange: Exchange, *, interval: float = REPORT_SECONDS) -> None:
    """Log once in each interval which limits were reached. Never returns; logs all sums when it is cancelled."""
    before: Counter[str] = Counter()
    try:
        while True:
            await asyncio.sleep(interval)
            grown = {name: count for name, count in (exchange.counts - before).items() if name not in USUAL}
            before = exchange.counts.copy()
            if grown:
                log.warning("signal.limits_reached", extra={"counters": grown, "streams": exchange.streams})
    finally:
        log.info("signal.totals", extra={"counters": dict(exchange.counts)})
