"""The peers of the last map, and their links, which open and close a limited number at a time.

A peer that left is in the table no longer as soon as the map is replaced; only the work of closing its link may follow
later. A peer that is new gets its link in its turn, or at once when the node needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Final

from netbird_overlay.paths.entry import Entry
from netbird_overlay.paths.servers import RemotePeer

STAGGER: Final = 0.002
"""Seconds between the first offers of peers that join together, so that a large map is no burst."""
EAGER_PEERS: Final = 64
"""Number of peers up to which lazy ones get a path at once. In larger networks they begin asleep: a path of each costs
signalling, a subscription and keepalives, at both ends."""
LINKS_A_TURN: Final = 64
"""Maximum number of links that are opened, changed or closed in one turn of the loop: about 8 ms."""


class Roster:
    """The table of peers.

    Args:
        own_key: our own key, which is no peer's.
        time: the loop's clock.
        enter: makes the entry of a peer. Gets the time at which its link begins, and True if the peer begins asleep.
        keep: takes note that a peer with an entry is in the next map too, perhaps with other properties.
        leave: closes the link of a peer that has left.

    Attributes:
        entries: the peers with a link, by key.
    """

    def __init__(
        self,
        own_key: bytes,
        time: Callable[[], float],
        enter: Callable[[RemotePeer, float, bool], None],
        keep: Callable[[Entry, RemotePeer], None],
        leave: Callable[[Entry], None],
    ) -> None:
        self.entries: dict[bytes, Entry] = {}
        self._own_key, self._time = own_key, time
        self._enter, self._keep, self._leave = enter, keep, leave
        self._begin = 0.0
        self._is_large = False
        self._waiting: dict[bytes, RemotePeer] = {}
        self._leaving: dict[bytes, Entry] = {}

    def __contains__(self, key: object) -> bool:
        return key in self.entries or key in self._waiting

    def get(self, key: bytes) -> Entry | None:
        """The entry of a peer, which gets its link now if its turn has not come. None if the peer is not in the map."""
        if (peer := self._waiting.pop(key, None)) is not None:
            if (previous := self._leaving.pop(key, None)) is not None:
                self._leave(previous)
            if (entry := self.entries.get(key)) is not None:
                self._keep(entry, peer)
            else:
                begin = max(self._begin, self._time())
                self._begin = begin + STAGGER
                self._enter(peer, begin, peer.may_sleep and self._is_large)
        return self.entries.get(key)

    def replace(self, peers: Iterable[RemotePeer]) -> Generator[None]:
        """Replace the peers, and yield after each `LINKS_A_TURN` links.

        A later call takes over what an earlier one has not done. Closing the iterator closes the links of all peers
        that left; peers whose turn has not come stay in the table.
        """
        waiting = self._waiting = {peer.key: peer for peer in peers if peer.key != self._own_key}
        self._begin, self._is_large = 0.0, len(waiting) > EAGER_PEERS
        for key in self.entries.keys() - waiting.keys():
            self._leaving[key] = self.entries.pop(key)
        done = 0
        try:
            while self._leaving or (waiting and self._waiting is waiting):
                if done == LINKS_A_TURN:
                    yield
                    done = 0
                    continue
                done += 1
                if self._leaving:
                    self._leave(self._leaving.pop(next(iter(self._leaving))))
                else:
                    self.get(next(iter(waiting)))
        finally:
            while self._leaving:
                self._leave(self._leaving.pop(next(iter(self._leaving))))
