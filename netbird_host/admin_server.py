"""The HTTP server behind the admin socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the host handles signals, and uvicorn would end the process by itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(application: Any, listening: socket.socket, stop: asyncio.Event) -> None:
    """Serve an ASGI application on a listening socket, until `stop` is set and requests had a second to end."""
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve([listening]))
        await stop.wait()
        server.should_exit = True
