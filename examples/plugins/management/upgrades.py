"""A WebSocket at a path of the REST port, served by a thread of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from socket import socket

from netbird_management import PluginInfo, TakeSocket, hookimpl

SECONDS = 10.0


class Refusing:
    """Answers every WebSocket at `/later` with 503, at most four at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4)

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="refuses WebSockets at /later")

    @hookimpl
    def upgrades(self) -> Mapping[str, TakeSocket]:
        return {"/later": self._take}

    def _take(self, *, connection: socket, head: bytes, address: str) -> None:
        self._threads.submit(_refuse, connection)


def _refuse(connection: socket) -> None:
    connection.settimeout(SECONDS)
    with connection, contextlib.suppress(OSError):  # the client has gone
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
