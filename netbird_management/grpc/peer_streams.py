"""The peers that are connected to this process, and when each is due a new map."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc

from netbird_management.compute.differences import network_differs, services_differ
from netbird_management.grpc.errors import Refused
from netbird_management.model.accounts import Peer
from netbird_management.model.ids import AccountId, PeerId
from netbird_management.model.snapshot import Changes

QUIET_SECONDS = 1.0
"""How long an agent's map waits for another change that would replace it. A proxy's does not wait: it is how access
that was taken away ends."""
QUIET_AT_MOST_SECONDS = 5.0
"""Changes that never stop do not keep a map back for ever."""


class PeerStream:
    """One peer's stream of maps. `started_ns` fences what is written about its presence."""

    def __init__(self, peer: Peer, started_ns: int) -> None:
        self.peer_id: PeerId = peer.id
        self.account_id: AccountId = peer.account_id
        self.key = peer.key
        self.started_ns = started_ns
        self.why: Refused | None = None
        self._news = asyncio.Event()
        self._ended = False

    @property
    def due(self) -> bool:
        """Whether a map is to be made, or the stream to be ended."""
        return self._news.is_set()

    def wake(self) -> None:
        """Something changed that the peer's map is made of."""
        self._news.set()

    def end(self, why: Refused) -> None:
        if not self._ended:
            self._ended, self.why = True, why
            self._news.set()

    async def changes(self, quiet: float) -> AsyncIterator[None]:
        """Each time that a new map is due; several changes within `quiet` seconds of each other are one. Raises
        `Refused` once the stream is over."""
        while True:
            await self._news.wait()
            if not self._ended and quiet:
                await self._settled(quiet)
            if self.why is not None:
                raise self.why
            self._news.clear()
            yield

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
    """The live streams by WireGuard key; belongs to one event loop."""

    def __init__(self) -> None:
        self._live: dict[str, PeerStream] = {}
        self._last_start = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._conversations = 0

    def join(self, peer: Peer) -> PeerStream:
        """A new stream of the peer; an earlier one ends."""
        # Later than any stream before it, also where the clock was set back.
        self._last_start = max(self._last_start + 1, peer.stream_started_ns + 1, time.time_ns())
        stream = PeerStream(peer, self._last_start)
        earlier = self._live.get(peer.key)
        self._live[peer.key] = stream
        self._conversations += 1
        self._quiet.clear()
        if earlier is not None:
            earlier.end(Refused(grpc.StatusCode.ABORTED, "the peer has connected anew"))
        return stream

    def leave(self, stream: PeerStream) -> None:
        if self._live.get(stream.key) is stream:
            del self._live[stream.key]

    def over(self) -> None:
        """A stream that joined has cleaned up."""
        self._conversations -= 1
        if not self._conversations:
            self._quiet.set()

    async def follow(self, changes: Changes) -> None:
        """Until cancelled: wakes the streams of each account that changes, and ends those of peers that are gone."""
        async for change in changes:
            if not (services_differ(change) or network_differs(change.before, change.after)):
                continue
            for stream in list(self._live.values()):
                if stream.account_id != change.account_id:
                    continue
                if change.after is None or stream.peer_id not in change.after.peers:
                    stream.end(Refused(grpc.StatusCode.PERMISSION_DENIED, "peer is not registered"))
                else:
                    stream.wake()

    async def end_all(self, why: Refused, timeout: float) -> None:
        """Ends every stream and waits until each has cleaned up, for some seconds."""
        for stream in list(self._live.values()):
            stream.end(why)
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            return
