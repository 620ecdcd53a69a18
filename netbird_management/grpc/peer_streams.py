"""The peers connected to this process, and the times at which each needs a new map."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto

import grpc

from netbird_management.compute.differences import network_differs, services_differ
from netbird_management.grpc.errors import Refused
from netbird_management.model.accounts import Peer
from netbird_management.model.ids import AccountId, PeerId
from netbird_management.model.snapshot import AccountSnapshot, Changes

QUIET_SECONDS = 1.0
"""Time that an agent's map waits for a further change, which would replace it. A proxy's map does not wait, as it ends
access that was withdrawn."""
QUIET_AT_MOST_SECONDS = 5.0
"""Maximum time that continuous changes delay a map."""


class Due(Enum):
    """A message that a peer's stream owes."""

    MAP = auto()
    """A new map, after a change of the data that it depends on."""
    CONFIGURATION = auto()
    """The servers with new credentials."""


class PeerStream:
    """The stream of maps to a peer. `started_ns` orders its streams: the store ignores the presence of an older one."""

    def __init__(self, peer: Peer, started_ns: int) -> None:
        self.peer_id: PeerId = peer.id
        self.account_id: AccountId = peer.account_id
        self.key = peer.key
        self.started_ns = started_ns
        self.refusal: Refused | None = None
        self._news = asyncio.Event()
        self._configuration_due = False
        self._map_due = False
        self._refresh: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def due(self) -> bool:
        """True if a message is due, or the end of the stream."""
        return self._news.is_set()

    def wake(self) -> None:
        """Requests a new map, after a change of the data that the peer's map depends on."""
        self._map_due = True
        self._news.set()

    def refresh_in(self, seconds: float | None) -> None:
        """Requests the configuration after this time, or never for `None`. An earlier request is forgotten."""
        if self._refresh is not None:
            self._refresh.cancel()
            self._refresh = None
        if seconds is not None:
            self._refresh = asyncio.get_running_loop().call_later(seconds, self.refresh)

    def refresh(self) -> None:
        """Requests the configuration with new credentials."""
        self._configuration_due = True
        self._news.set()

    def end(self, refusal: Refused) -> None:
        if not self._ended:
            self._ended, self.refusal = True, refusal
            self._news.set()

    async def changes(self, quiet: float) -> AsyncIterator[Due]:
        """Yields each message that is due; changes within `quiet` seconds of each other yield one map. Raises `Refused`
        when the stream ends."""
        while True:
            await self._news.wait()
            if not self._ended and self._map_due and quiet:
                await self._settled(quiet)
            if self.refusal is not None:
                raise self.refusal
            self._news.clear()
            configuration, self._configuration_due = self._configuration_due, False
            map_, self._map_due = self._map_due, False
            if configuration:
                yield Due.CONFIGURATION
            if map_:
                yield Due.MAP

    async def _settled(self, quiet: float) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() + max(quiet, QUIET_AT_MOST_SECONDS)
        while not self._ended:
            self._news.clear()
            try:
                async with asyncio.timeout_at(min(loop.time() + quiet, latest)):
                    await self._news.wait()
            except TimeoutError:
                return


class PeerStreams:
    """The live streams by WireGuard key. Belongs to one event loop."""

    def __init__(
        self, refusal: Callable[[AccountSnapshot, Peer], Refused | None] = lambda _account, _peer: None
    ) -> None:
        """`refusal` returns the status for a peer that is no longer admitted, whose stream then ends at once."""
        self._refusal = refusal
        self._live: dict[str, PeerStream] = {}
        self._last_start = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._conversations = 0

    def join(self, peer: Peer) -> PeerStream:
        """A new stream of the peer; its earlier one ends."""
        # Later than every earlier stream, even after the clock was set back.
        self._last_start = max(self._last_start + 1, peer.stream_started_ns + 1, time.time_ns())
        stream = PeerStream(peer, self._last_start)
        earlier = self._live.get(peer.key)
        self._live[peer.key] = stream
        self._conversations += 1
        self._quiet.clear()
        if earlier is not None:
            earlier.end(Refused(grpc.StatusCode.ABORTED, "the peer opened a newer stream"))
        return stream

    def leave(self, stream: PeerStream) -> None:
        stream.refresh_in(None)
        if self._live.get(stream.key) is stream:
            del self._live[stream.key]

    def cleaned_up(self) -> None:
        """Reports that a stream that joined has finished its cleanup."""
        self._conversations -= 1
        if not self._conversations:
            self._quiet.set()

    async def follow(self, changes: Changes) -> None:
        """Wakes the streams of each account that changes, and ends those of deleted peers, until it is cancelled."""
        async for change in changes:
            if not (services_differ(change) or network_differs(change.before, change.after)):
                continue
            for stream in list(self._live.values()):
                if stream.account_id != change.account_id:
                    continue
                peer = None if change.after is None else change.after.peers.get(stream.peer_id)
                if change.after is None or peer is None:
                    stream.end(Refused(grpc.StatusCode.PERMISSION_DENIED, "peer is not registered"))
                elif (refused := self._refusal(change.after, peer)) is not None:
                    stream.end(refused)
                else:
                    stream.wake()

    async def end_all(self, refusal: Refused, timeout: float) -> None:
        """Ends every stream, and waits at most `timeout` seconds for their cleanup."""
        for stream in list(self._live.values()):
            stream.end(refusal)
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            return
