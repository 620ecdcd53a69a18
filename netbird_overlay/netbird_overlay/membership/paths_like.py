"""The parts of `paths` that a membership uses. A node without paths reaches peers where it knows their endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from netbird_overlay.paths.servers import PathServers, RemotePeer


class PathStateLike(Protocol):
    @property
    def kind(self) -> str:
        """`none`, `udp`, `relay` or `ice`."""


class PathsLike(Protocol):
    def configure(self, servers: PathServers) -> None: ...

    async def replace_peers(self, peers: Iterable[RemotePeer]) -> None: ...

    def state(self, key: bytes) -> PathStateLike: ...

    def wake(self, key: bytes) -> bool: ...
