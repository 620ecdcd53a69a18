"""What an operator may ask a running proxy, on a Unix socket that only its own user can open.

Read-only. It answers with more than a client may ever see, which is why it is a socket of mode 0600 and not a port.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import ExchangeId
from netbird_proxy.operator.decisions import Decisions


class Inspected(Protocol):
    """What the socket shows of the server."""

    decisions: Decisions

    def describe_routes(self) -> list[dict[str, Any]]: ...

    def describe_plugins(self) -> list[dict[str, Any]]: ...

    def describe_state(self) -> dict[str, Any]: ...

    def dry_run(self, host: str, path: str, account: str | None) -> dict[str, Any]:
        """Which route a request would meet and which steps it would run. Runs none of them."""


def application(server: Inspected) -> Starlette:
    async def explain(request: Request) -> JSONResponse:
        found = server.decisions.find(ExchangeId(request.path_params["id"]))
        if found is None:
            return JSONResponse({"message": "no such exchange, or it is forgotten already"}, status_code=404)
        return JSONResponse(found)

    async def dry_run(request: Request) -> JSONResponse:
        query = request.query_params
        if "host" not in query:
            return JSONResponse({"message": "say host, and path and account if you like"}, status_code=400)
        return JSONResponse(server.dry_run(query["host"], query.get("path", "/"), query.get("account")))

    async def recent(_request: Request) -> JSONResponse:
        return JSONResponse(server.decisions.latest())

    async def routes(_request: Request) -> JSONResponse:
        return JSONResponse(server.describe_routes())

    async def plugins(_request: Request) -> JSONResponse:
        return JSONResponse(server.describe_plugins())

    async def state(_request: Request) -> JSONResponse:
        return JSONResponse(server.describe_state())

    return Starlette(
        routes=[
            Route("/exchanges", recent),
            Route("/exchanges/{id}", explain),
            Route("/explain", dry_run),
            Route("/routes", routes),
            Route("/plugins", plugins),
            Route("/state", state),
        ]
    )


class _Web(uvicorn.Server):
    """uvicorn without its capture of signals: those are the proxy's, and would end us behind its back."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_admin(server: Inspected, path: Path) -> AsyncIterator[None]:
    """The socket while it is open. SettingsError where it cannot be made, or another live process has it."""
    listening = _bind(path)
    config = uvicorn.Config(
        application(server),
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
        raise SettingsError(f"admin.socket {path}: {path.parent} is not a directory") from exc
    except OSError as exc:
        raise SettingsError(f"admin.socket {path}: {exc.strerror or exc}") from exc
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
    raise SettingsError(f"admin.socket {path}: another running proxy has it")
