"""The last known endpoint of each peer of an account, kept across restarts and crashes of this process.

After a restart, a stock client continues the session that we lost for up to 15 s, unless we send it a handshake first;
so we must know its endpoint. A move is therefore appended to a journal before any packet that the peer sent from the
new endpoint is processed: every peer that received an answer from us is in the journal. A plain `write` suffices,
because its data outlive the process. The state file beside it is written whole and synced by a thread, and outlives a
crash of the machine.

    <directory>/moves.jsonl   ["<public key>", "192.0.2.1", 51820] a line; the last line of a peer counts
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Container
from ipaddress import ip_address
from pathlib import Path

import structlog

from netbird_overlay.engine import Endpoint
from netbird_overlay.keys import StateUnusable, TunnelState
from netbird_wire.envelope import BadKey, format_key, parse_key

log = structlog.get_logger("netbird_overlay.peer_endpoints")

JOURNAL_FILE = "moves.jsonl"
JOURNAL_MOST_BYTES = 64 << 10
"""Maximum size of the journal. When it is full, moves are saved only with the next write of the state file."""
SAVE_DELAY = 1.0
"""Seconds from a move until the state file is written; moves in between share the write."""
SAVE_FLOOR = 30.0
"""Minimum time in seconds between two writes of the state file for peers that are in it. The journal has their moves;
a peer that moves with each datagram therefore costs one synced write in this time."""
GONE_KEPT, GONE_MOST = 600.0, 256
"""Seconds for which, and maximum number of peers for which, endpoints are kept after a peer leaves the map. A peer that
comes back meanwhile may still use a session that we ended; after ten minutes WireGuard itself has dropped it."""


def storable(endpoint: Endpoint) -> Endpoint | None:
    """Return an endpoint as it is kept; None for an IPv6 link-local one."""
    if ":" in endpoint.host and ip_address(endpoint.host).is_link_local:
        return None
    return Endpoint(endpoint.host, endpoint.port)


class PeerEndpoints:
    """Keeps `state.endpoints` current, in memory and on disk, from construction to `close`."""

    def __init__(self, state: TunnelState, *, delay: float = SAVE_DELAY, floor: float = SAVE_FLOOR) -> None:
        self._state = state
        self._delay, self._floor = delay, floor
        self._saved_keys = frozenset(state.endpoints)
        self._newcomer = asyncio.Event()
        self._gone: dict[bytes, float] = {}
        self._changed = asyncio.Event()
        self._journal: int | None = None
        self._journal_bytes = 0
        self._reported = False
        self._writing = False
        try:
            self._replay()
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._journal = os.open(self._path, flags, 0o600)
        except OSError as exc:
            self._report(exc.strerror or "")

    @property
    def _path(self) -> Path:
        return self._state.directory / JOURNAL_FILE

    def _replay(self) -> None:
        """Read the moves that the last process had not yet written to the state file."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                text = file.read(2 * JOURNAL_MOST_BYTES)
            for line in text.splitlines():
                # Entries are hints, and a crash can cut the last one short: an entry that cannot be read is ignored.
                with contextlib.suppress(BadKey, ValueError, TypeError):
                    key, host, port = json.loads(line)
                    if isinstance(host, str) and isinstance(port, int) and 0 < port < 65536:
                        place = storable(Endpoint(host, port))
                        if place is not None:
                            self._state.endpoints[parse_key(key)] = place
            if text:
                self._journal_bytes = len(text)
                self._changed.set()

    def moved(self, key: bytes, endpoint: Endpoint) -> None:
        """Record a peer's new endpoint. It is on disk when this returns, unless the disk fails.

        A link-local endpoint is not recorded: the number of its interface may belong to another one after a restart.
        """
        place = storable(endpoint)
        if place is None or self._state.endpoints.get(key) == place:
            return
        self._state.endpoints.pop(key, None)  # so that the order is that of the moves
        self._state.endpoints[key] = place
        self._changed.set()
        if key not in self._saved_keys:
            self._newcomer.set()
        self._append({key: place})

    def _append(self, moves: dict[bytes, Endpoint]) -> None:
        lines = (json.dumps([format_key(key), endpoint.host, endpoint.port]) + "\n" for key, endpoint in moves.items())
        text = "".join(lines).encode()
        if self._journal is None or self._journal_bytes + len(text) > JOURNAL_MOST_BYTES:
            return
        try:
            self._journal_bytes += os.write(self._journal, text)
        except OSError as exc:
            self._report(exc.strerror or "")

    def present(self, members: Container[bytes], now: float) -> None:
        """Note the members of the map just applied. Peers that left are forgotten later (`GONE_KEPT`), oldest first."""
        for key in list(self._state.endpoints):
            if key in members:
                self._gone.pop(key, None)
            else:
                self._gone.setdefault(key, now)
        over = len(self._gone) - GONE_MOST
        for key, since in list(self._gone.items()):  # ordered by the time they left
            if over <= 0 and now - since < GONE_KEPT:
                break
            over -= 1
            del self._gone[key]
            self._state.endpoints.pop(key, None)
            self._changed.set()

    async def keep_saved(self) -> None:
        """Write the state file after changes: soon for a peer that is new to it, else every `SAVE_FLOOR` seconds.

        Never returns. A failure is reported once and ends nothing.
        """
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._delay)
            self._changed.clear()
            self._newcomer.clear()
            try:
                await self._save()
            except Exception as exc:  # an account's tunnel does not end for its hints
                self._report(str(exc) or repr(exc))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._floor):
                    await self._newcomer.wait()

    async def _save(self) -> None:
        written = dict(self._state.endpoints)
        text = self._state.render()
        self._writing = True
        try:
            await asyncio.to_thread(self._state.save, text)
        finally:
            self._writing = False
        self._saved_keys = frozenset(written)
        self._saved(written)

    def _saved(self, written: dict[bytes, Endpoint]) -> None:
        """Reduce the journal to the moves that are not in the state file."""
        if self._journal is None or not self._journal_bytes:
            return
        later = {key: at for key, at in self._state.endpoints.items() if written.get(key) != at}
        if later and self._journal_bytes < JOURNAL_MOST_BYTES // 2:
            return  # the next write of the state file will do; until then both files together are complete
        try:
            os.ftruncate(self._journal, 0)
        except OSError as exc:
            self._report(exc.strerror or "")
        else:
            self._journal_bytes = 0
            self._append(later)

    def close(self) -> None:
        """Write all changes that are not on disk yet."""
        if self._changed.is_set():
            try:
                self._state.save()
            except StateUnusable as exc:
                self._report(str(exc))
            else:
                # A thread that is still writing may overwrite the file with an older state; the journal corrects it.
                if not self._writing:
                    self._saved(self._state.endpoints)
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _report(self, why: str) -> None:
        # The cost is a slower reconnect of some peers after the next start: no reason to end the tunnel.
        if not self._reported:
            self._reported = True
            log.warning("tunnel.state_not_saved", error=why)
