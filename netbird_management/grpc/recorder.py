"""Background writes that no call waits for: the reasons for withheld services, and the times peers were last seen.

Only the latest value of each waits. A value that cannot be written is logged and dropped: operators see these values,
and no decision depends on them.
"""

import asyncio
import logging
from collections.abc import Mapping

from netbird_management.model.accounts import Peer
from netbird_management.model.ids import PeerId, ProxyId, ServiceId
from netbird_management.operations.peers import note_seen
from netbird_management.operations.withheld import note_withheld, replace_withheld
from netbird_management.store.state import State

_log = logging.getLogger(__name__)


class Recorder:
    """Collects values, and writes them one after another in `run`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._snapshots: dict[ProxyId, dict[ServiceId, str]] = {}
        self._changes: dict[ProxyId, dict[ServiceId, str | None]] = {}
        self._seen: dict[PeerId, Peer] = {}
        self._arrived = asyncio.Event()

    def withheld_at_snapshot(self, proxy_id: ProxyId, reasons: Mapping[ServiceId, str]) -> None:
        """Replaces the reasons of a proxy that received a snapshot."""
        self._changes.pop(proxy_id, None)
        self._snapshots[proxy_id] = dict(reasons)
        self._arrived.set()

    def withheld(self, proxy_id: ProxyId, service_id: ServiceId, reason: str | None) -> None:
        """Records a change of the reason; None and "" have the meaning of `operations.withheld.note_withheld`."""
        self._changes.setdefault(proxy_id, {})[service_id] = reason
        self._arrived.set()

    def seen(self, peer: Peer) -> None:
        """Records that a service admitted the peer now."""
        self._seen[peer.id] = peer
        self._arrived.set()

    async def run(self) -> None:
        """Writes collected values until it is cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._snapshots or self._changes or self._seen:
                try:
                    await self._write_one()
                except Exception:
                    _log.exception("recorder.write.failed")

    async def _write_one(self) -> None:
        if self._snapshots:
            proxy_id, reasons = self._snapshots.popitem()
            await replace_withheld(self._state, proxy_id, reasons)
        elif self._changes:
            proxy_id, changes = self._changes.popitem()
            await note_withheld(self._state, proxy_id, changes)
        else:
            await note_seen(self._state, self._seen.popitem()[1])
