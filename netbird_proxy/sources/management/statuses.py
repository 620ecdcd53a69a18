"""Reports the latest status of each service to management, and repeats it until management accepts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import structlog

from netbird_proxy.api.errors import ManagementError, ManagementRefused
from netbird_proxy.api.host import ManagementChannel
from netbird_proxy.api.model import AccountId, ServiceId
from netbird_wire.backoff import Backoff
from netbird_wire.proxy_service_pb2 import ProxyInboundListener, ProxyStatus, SendStatusUpdateRequest

log = structlog.get_logger("netbird_proxy.control")

FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
TIMEOUT = 5.0
AT_ONCE = 32
LIMIT = 131_072
"""Maximum number of services with a waiting status; above it the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Status:
    """One service's state at this proxy.

    Attributes:
        inbound: `(tunnel_ip, http_port, https_port)` of the account's live listeners, ports 0 where not served.
    """

    service: ServiceId
    account: AccountId
    status: ProxyStatus.ValueType
    error: str = ""
    certificate: bool = False
    inbound: tuple[str, int, int] | None = None

    def request(self) -> SendStatusUpdateRequest:
        request = SendStatusUpdateRequest(
            service_id=self.service,
            account_id=self.account,
            status=self.status,
            certificate_issued=self.certificate,
        )
        if self.error:
            request.error_message = self.error
        if self.inbound is not None:
            address, http_port, https_port = self.inbound
            request.inbound_listener.CopyFrom(
                ProxyInboundListener(tunnel_ip=address, http_port=http_port, https_port=https_port)
            )
        return request


class StatusReports:
    """Sends statuses, several at a time, because each call takes as long as management's store.

    A newer status of a service replaces an older one that is still waiting.
    """

    def __init__(self, management: ManagementChannel, count: Callable[[str], object] = lambda _name: None) -> None:
        self._management = management
        self.count = count
        self._waiting: dict[ServiceId, Status] = {}
        self._wake = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Send no further statuses until the context is left."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def report(self, status: Status) -> None:
        if status.service not in self._waiting and len(self._waiting) >= LIMIT:
            # The next snapshot causes a status of every service again.
            del self._waiting[next(iter(self._waiting))]
            self.count("statuses_dropped")
        self._waiting[status.service] = status
        self._wake.set()

    async def run(self) -> None:
        """Send statuses until cancelled. Failed calls are repeated; a status that management refuses is dropped."""
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        at_once = AT_ONCE
        while True:
            await self._wake.wait()
            await self._free.wait()
            if not self._waiting:
                self._wake.clear()
                continue
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._send(status)) for status in islice(self._waiting.values(), at_once)]
            failed = [failure for call in calls if (failure := call.result()) is not None]
            if not failed:
                backoff.reset()
                at_once = AT_ONCE
                continue
            status, error = failed[0]
            wait = backoff.next_wait()
            log.warning("management.status.waiting", service_id=status.service, error=str(error), retry_in=wait)
            await asyncio.sleep(wait)
            at_once = 1

    async def _send(self, status: Status) -> tuple[Status, ManagementError] | None:
        """Send one status. Returns it with the error if it must be sent again."""
        try:
            await self._management.call("SendStatusUpdate", status.request(), timeout=TIMEOUT)
        except ManagementRefused as exc:
            # The usual case is a service that management no longer has; its status does not matter.
            log.debug("management.status.refused", service_id=status.service, error=str(exc))
        except ManagementError as exc:
            return status, exc
        if self._waiting.get(status.service) is status:
            del self._waiting[status.service]
        return None
