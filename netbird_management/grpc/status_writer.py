"""Storage of the statuses that proxies report: all waiting reports are written in one transaction.

After a snapshot, a proxy reports each of its services at once; a transaction for each would block the store.
"""

import asyncio
from typing import Final

from netbird_management.model.errors import NotFound
from netbird_management.operations.statuses import Report, set_service_statuses
from netbird_management.store.state import State

AT_ONCE: Final = 500


class StatusWriter:
    """Writes reports in `run`, in the order of arrival. Belongs to one event loop."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[tuple[Report, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def write(self, report: Report) -> None:
        """Returns when the report is stored. Raises `NotFound` for an unknown service or proxy, and the store's
        errors."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((report, stored))
        self._arrived.set()
        await stored

    async def run(self) -> None:
        """Writes reports until it is cancelled, which also cancels the waiting calls of `write`."""
        batch: list[tuple[Report, asyncio.Future[None]]] = []
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                    await self._write(batch)
        finally:
            for _, stored in (*batch, *self._waiting):
                stored.cancel()

    async def _write(self, batch: list[tuple[Report, asyncio.Future[None]]]) -> None:
        try:
            missing = await set_service_statuses(self._state, [report for report, _ in batch])
        except Exception as error:
            for _, stored in batch:
                if not stored.done():
                    stored.set_exception(error)
            return
        for report, stored in batch:
            if stored.done():
                continue  # its caller was cancelled
            if report in missing:
                stored.set_exception(NotFound(f"service {report.service_id} or proxy {report.proxy_id} not found"))
            else:
                stored.set_result(None)
