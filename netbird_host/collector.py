"""The cycle collector of a process that serves: it stops everything for as long as it looks at every object."""

from __future__ import annotations

import gc


def calm_collector() -> None:
    """Let the cycle collector look less often, and never again at what was loaded until now.

    What serving makes leaves no cycles; but what is remembered of it looks like a growing heap, and at Python's own
    thresholds looking through it took 6 % of a proxy's time, and stopped a management of 10,000 services for a tenth of
    a second at a time. Cycles of failures (an exception and its frames) are found later, not never.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
