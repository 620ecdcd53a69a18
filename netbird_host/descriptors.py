"""The limit on open files, which bounds the number of connections."""

from __future__ import annotations

import resource

# Linux's default maximum. With an unlimited hard limit, a higher soft limit would only enlarge the kernel's tables.
MOST = 1 << 20


def raise_limit() -> int:
    """Raise the soft limit on file descriptors as far as the system allows, and return the limit in force.

    The soft limit is 1024 on most systems for the sake of programs that use `select`, which these hosts do not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return MOST if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (ValueError, OSError):
        return soft
    return limit
