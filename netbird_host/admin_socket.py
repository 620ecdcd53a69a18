"""The admin socket: a Unix socket on which a running host serves HTTP to its operator, open to its own user only."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any


class SocketUnavailable(Exception):
    """The socket cannot be created, or another running process uses it; the message says which."""


@asynccontextmanager
async def serve_admin_socket(application: Any, path: Path) -> AsyncIterator[None]:
    """Serve an ASGI application on the socket until the context is left.

    The server is imported when the first client connects: a host whose operator asks nothing does without it.

    Raises:
        SocketUnavailable: the socket cannot be used; nothing is served.
    """
    listening = _bind(path)
    wake, stop = asyncio.Event(), asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_serve(application, listening, wake, stop), name="admin socket")
            yield
            stop.set()
            wake.set()
    finally:
        listening.close()
        with suppress(FileNotFoundError):
            os.unlink(path)


async def _serve(application: Any, listening: socket.socket, wake: asyncio.Event, stop: asyncio.Event) -> None:
    """Serve from the first client on, which sets `wake`, until `stop` is set."""
    loop = asyncio.get_running_loop()
    loop.add_reader(listening, wake.set)
    try:
        await wake.wait()
    finally:
        loop.remove_reader(listening)
    if not stop.is_set():
        from netbird_host.admin_server import serve

        await serve(application, listening, stop)


def _bind(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            _remove_if_dead(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A umask and not a later chmod, so that the socket is never open to others, not even for a moment.
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
    except FileExistsError as exc:
        raise SocketUnavailable(f"{path}: {path.parent} is not a directory") from exc
    except OSError as exc:
        raise SocketUnavailable(f"{path}: {exc.strerror or exc}") from exc
    listening.listen(16)
    listening.setblocking(False)
    return listening


def _remove_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise SocketUnavailable(f"{path}: another running process uses it")
