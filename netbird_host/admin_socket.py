"""A Unix socket on which a running host answers its operator: HTTP for its own user only."""

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
    """The socket cannot be made, or another live process has it; the message says which."""


class _Web(uvicorn.Server):
    """uvicorn without its capture of signals: the process owns those, and uvicorn would end it behind its back."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_admin_socket(application: Any, path: Path) -> AsyncIterator[None]:
    """Serve an ASGI application on the socket while this lasts.

    Raises:
        SocketUnavailable: nothing is served.
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
    web = _Web(config)
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(web.serve([listening]), name="admin socket")
            yield
            web.should_exit = True
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
        # The mode must hold from the first moment on, so the mask does it and not a chmod afterwards.
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
    raise SocketUnavailable(f"{path}: another running process has it")
