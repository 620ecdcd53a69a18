"""What is written down off the callers' way: why services are withheld, and which peers were seen.

Of each thing only the latest word waits. What cannot be written is logged and forgotten: it is shown to operators, and
nothing is decided by it.
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
    """Collects words and writes them one after another, in `run`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._snapshots: dict[ProxyId, dict[ServiceId, str]] = {}
        self._changes: dict[ProxyId, dict[ServiceId, str | None]] = {}
        self._seen: dict[PeerId, Peer] = {}
        self._some = asyncio.Event()

    def withheld_at_snapshot(self, proxy_id: ProxyId, reasons: Mapping[ServiceId, str]) -> None:
        """All that is withheld from a proxy that just got its snapshot."""
        self._changes.pop(proxy_id, None)
        self._snapshots[proxy_id] = dict(reasons)
        self._some.set()

    def withheld(self, proxy_id: ProxyId, service_id: ServiceId, reason: str | None) -> None:
        """As `services.withheld.note_withheld`."""
        self._changes.setdefault(proxy_id, {})[service_id] = reason
        self._some.set()

    def seen(self, peer: Peer) -> None:
        """The peer was let in just now."""
        self._seen[peer.id] = peer
        self._some.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
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
