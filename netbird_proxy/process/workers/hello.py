"""The parent's first message to a worker, on the worker's standard input: its share, settings and descriptors."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from netbird_host.settings import Given
from netbird_proxy.api.share import Share
from netbird_proxy.process.listeners import WorkerSockets

Descriptors = list[list[int]]
"""The descriptors of the sockets of each `[[listen]]` section, in their order."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Everything that a worker needs from its parent. Descriptors have the same numbers in both processes.

    Attributes:
        channel: descriptor of the worker's end of the channel.
        turns: descriptor of the file on which processes lock to write lines to the output that they share.
        config: the settings file, for a reload.
        flags: values from the command line.
        sources: all settings as the parent read them, so that a worker that starts later has those of its siblings.
        own, others: sockets, see `WorkerSockets`.
        beside: addresses on which the parent accepts.
    """

    share: Share
    channel: int
    turns: int
    config: str | None
    flags: list[Given]
    sources: dict[str, Any]
    own: Descriptors
    others: dict[int, Descriptors]
    beside: list[tuple[str, int]]

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Hello:
        """ValueError if the data is not a hello."""
        return msgspec.json.decode(data, type=cls)

    @property
    def file(self) -> Path | None:
        return Path(self.config) if self.config is not None else None

    def sockets(self) -> WorkerSockets:
        """Take the inherited sockets; call it once."""
        return WorkerSockets(_sockets(self.own), {number: _sockets(others) for number, others in self.others.items()})


def _sockets(sections: Descriptors) -> list[list[socket.socket]]:
    return [[socket.socket(fileno=descriptor) for descriptor in section] for section in sections]
