"""How many files and connections the process may have open."""

from __future__ import annotations

import resource

MOST = 1 << 20
"""What Linux grants at most by default. Where the hard limit is "as many as you like", more would only cost tables."""


def raise_limit() -> int:
    """Take as many descriptors as the system lets this process have; the number.

    The soft limit is 1024 on most systems, for the sake of programs that use `select`, which nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        return soft
    return wanted
