"""What proxies report of services, on its way to the store: all that waits is written in one transaction.

After a snapshot a proxy has a word about each of its services, and a transaction for each would keep the store busy for
as long as the snapshot took.
"""

import asyncio
from typing import Final

from netbird_management.model.errors import NotFound
from netbird_management.operations.statuses import Report, set_service_statuses
from netbird_management.store.state import State

AT_ONCE: Final = 500


class StatusWriter:
    """Writes in `run`, in the order of arrival. Belongs to one event loop."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[tuple[Report, asyncio.Future[None]]] = []
        self._some = asyncio.Event()

    async def write(self, report: Report) -> None:
        """Returns when it is stored. Raises `NotFound` for a service or a proxy that is not there, and what the store
        raises."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((report, stored))
        self._some.set()
        await stored

    async def run(self) -> None:
        """Until cancelled; who waits then is cancelled, too."""
        batch: list[tuple[Report, asyncio.Future[None]]] = []
        try:
            while True:
                await self._some.wait()
                self._some.clear()
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
                continue  # its caller is gone
            if report in missing:
                stored.set_exception(NotFound(f"service {report.service_id} or proxy {report.proxy_id} not found"))
            else:
                stored.set_result(None)
