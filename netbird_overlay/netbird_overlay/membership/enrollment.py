"""Logging in, repeated until management answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.errors import ManagementFailure, NotRegistered
from netbird_overlay.network_map import read_own
from netbird_wire.backoff import Backoff
from netbird_wire.management_pb2 import LoginResponse

log = structlog.get_logger("netbird_overlay.membership")

FIRST_DELAY, FACTOR, LONGEST_DELAY = 0.8, 1.7, 10.0
"""Back-off in seconds; each wait is uniform in [0, 2 × interval]."""
LOOK_INTERVAL = 0.2
"""Interval in seconds at which a pause checks whether management is connected again."""

Register = Callable[[], Awaitable[None]]
"""Registers our key by other means than a login. Raises ManagementFailure."""


def login_backoff() -> Backoff:
    return Backoff(FIRST_DELAY, LONGEST_DELAY, factor=FACTOR, spread=(0.0, 2.0))


async def pause(seconds: float, connected: Callable[[], bool]) -> None:
    """Wait; return early when management reconnects."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    now = connected()
    while (left := until - loop.time()) > 0:
        await asyncio.sleep(min(left, LOOK_INTERVAL))
        now, before = connected(), now
        if now and not before:
            return


async def enroll(
    client: ManagementClient,
    *,
    register: Register | None = None,
    setup_key: str = "",
    jwt: str = "",
    dns_labels: Sequence[str] = (),
) -> LoginResponse:
    """Register and log in, and retry while management is away. The caller must set a time limit.

    Args:
        register: registers our key; called first, and again if management does not know the key.

    Raises:
        ManagementFailure: management refused the registration or the login; or, without `register`, does not know us.
        MapError: management's answer has no usable configuration of our node.
    """
    backoff = login_backoff()
    registered = register is None
    while True:
        if not registered and register is not None:
            await register()
            registered = True
        try:
            response = await client.login(setup_key=setup_key, jwt=jwt, dns_labels=dns_labels)
            read_own(response.peerConfig)
            return response
        except NotRegistered as exc:
            if register is None:
                raise
            registered = False
            why: ManagementFailure = exc
        except ManagementFailure as exc:
            # A refusal of our key's envelope may be one of a management that has just restarted with another key.
            if not exc.retryable and register is None and exc.code != "INVALID_ARGUMENT":
                raise
            why = exc
        log.warning("tunnel.login_failed", error=str(why))
        await asyncio.sleep(backoff.next_wait())
