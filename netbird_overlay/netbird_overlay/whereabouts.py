"""Where an account's peers were last seen, and how a process that is killed leaves that to the next one.

A stock client goes on with the session it had for up to 15 s after we forgot it, unless we shake hands with it first,
and for that we have to know where it is. So a move is appended to a journal before anything that the peer sent from
there is looked at: whoever had an answer from us is in it. A `write` is enough for that, since it outlives the process;
the state file beside it is written behind the loop's back, whole and synced, and outlives the machine.

    <directory>/moves.jsonl   ["<public key>", "192.0.2.1", 51820] a line; the last line of a peer counts
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Container
from pathlib import Path

import structlog

from netbird_overlay.keys import Endpoint, StateUnusable, TunnelState
from netbird_wire.envelope import BadKey, format_key, parse_key

log = structlog.get_logger("netbird_overlay.whereabouts")

JOURNAL_FILE = "moves.jsonl"
JOURNAL_MOST_BYTES = 64 << 10
"""A peer may move as often as it likes; past this, moves wait for the next time the state file is written."""
SAVE_DELAY = 1.0
"""Seconds in which moves are gathered before the state file is written."""
GONE_KEPT, GONE_MOST = 600.0, 256
"""How long, and for how many, we remember where peers were that are in the map no more. Who comes back meanwhile may
still have a session that we ended; after ten minutes WireGuard itself has given it up."""


class Whereabouts:
    """Keeps `state.endpoints`, in memory and on disk, from construction to `close`."""

    def __init__(self, state: TunnelState) -> None:
        self._state = state
        self._gone: dict[bytes, float] = {}
        self._changed = asyncio.Event()
        self._journal: int | None = None
        self._journal_bytes = 0
        self._told = False
        self._writing = False
        try:
            self._replay()
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._journal = os.open(self._path, flags, 0o600)
        except OSError as exc:
            self._tell(exc.strerror or "")

    @property
    def _path(self) -> Path:
        return self._state.directory / JOURNAL_FILE

    def _replay(self) -> None:
        """Take over what the last process had no time to put into the state file."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                text = file.read(2 * JOURNAL_MOST_BYTES)
            for line in text.splitlines():
                # These are hints, and the machine may have stopped in the middle of one: what cannot be read is none.
                with contextlib.suppress(BadKey, ValueError, TypeError):
                    key, host, port = json.loads(line)
                    if isinstance(host, str) and isinstance(port, int) and 0 < port < 65536:
                        self._state.endpoints[parse_key(key)] = (host, port)
            if text:
                self._journal_bytes = len(text)
                self._changed.set()

    def moved(self, key: bytes, endpoint: Endpoint) -> None:
        """A peer spoke from somewhere else. It is on disk when this returns, unless the disk fails."""
        if self._state.endpoints.get(key) == endpoint:
            return
        self._state.endpoints[key] = endpoint
        self._changed.set()
        self._append({key: endpoint})

    def _append(self, moves: dict[bytes, Endpoint]) -> None:
        text = "".join(json.dumps([format_key(key), host, port]) + "\n" for key, (host, port) in moves.items()).encode()
        if self._journal is None or self._journal_bytes + len(text) > JOURNAL_MOST_BYTES:
            return
        try:
            self._journal_bytes += os.write(self._journal, text)
        except OSError as exc:
            self._tell(exc.strerror or "")

    def present(self, members: Container[bytes], now: float) -> None:
        """These are in the map that was just applied. Others are forgotten after a while, the first to go first."""
        for key in list(self._state.endpoints):
            if key in members:
                self._gone.pop(key, None)
            else:
                self._gone.setdefault(key, now)
        over = len(self._gone) - GONE_MOST
        for key, since in list(self._gone.items()):  # in the order in which they went
            if over <= 0 and now - since < GONE_KEPT:
                break
            over -= 1
            del self._gone[key]
            self._state.endpoints.pop(key, None)
            self._changed.set()

    async def keep_saved(self) -> None:
        """Write the state file a moment after each change. Never returns."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(SAVE_DELAY)
            self._changed.clear()
            written = dict(self._state.endpoints)
            self._writing = True
            try:
                await asyncio.to_thread(self._state.save, self._state.render())
            except StateUnusable as exc:
                self._tell(str(exc))
            else:
                self._saved(written)
            self._writing = False

    def _saved(self, written: dict[bytes, Endpoint]) -> None:
        """Leave in the journal what the state file does not have."""
        if self._journal is None or not self._journal_bytes:
            return
        later = {key: at for key, at in self._state.endpoints.items() if written.get(key) != at}
        if later and self._journal_bytes < JOURNAL_MOST_BYTES // 2:
            return  # the next time will do, and until then nothing can get lost in between
        try:
            os.ftruncate(self._journal, 0)
        except OSError as exc:
            self._tell(exc.strerror or "")
        else:
            self._journal_bytes = 0
            self._append(later)

    def close(self) -> None:
        """Write what is not written yet."""
        if self._changed.is_set():
            try:
                self._state.save()
            except StateUnusable as exc:
                self._tell(str(exc))
            else:
                # A thread that we stopped waiting for may yet write what was so before; the journal then mends it.
                if not self._writing:
                    self._saved(self._state.endpoints)
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _tell(self, why: str) -> None:
        # It costs some peers a slower reconnect after the next start, which is no reason to end the tunnel now.
        if not self._told:
            self._told = True
            log.warning("tunnel.state_not_saved", error=why)
