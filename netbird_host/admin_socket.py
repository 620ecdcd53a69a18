"""The admin socket: a Unix socket on which a running host serves HTTP to its operator, open to its own user only."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn


class SocketUnavailable(Exception):
    """The socket cannot be created, or another running process uses it; the message says which."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the host handles signals, and uvicorn would end the process by itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_admin_socket(application: Any, path: Path) -> AsyncIterator[None]:
    """Serve an ASGI application on the socket until the context is left.

    Raises:
        SocketUnavailable: the socket cannot be used; nothing is served.
    """
    listening = _bind(path)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(server.serve([listening]), name="admin socket")
            yield
            server.should_exit = True
            await running
    finally:
        listening.close()
        with suppress(FileNotFoundError):
            os.unlink(path)


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
