"""The admin socket: an operator's requests to a running proxy, on a Unix socket that only its own user can open.

Its answers contain facts that no client may see, so it is a socket of mode 0600 and not a port. A reload is the only
request that changes the proxy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from netbird_host.admin_socket import SocketUnavailable, serve_admin_socket
from netbird_host.reload import Reload
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import ExchangeId
from netbird_proxy.operator.decisions import Decisions


class Inspected(Protocol):
    """The part of the server that the socket shows."""

    decisions: Decisions

    @property
    def reload(self) -> Reload[Any]: ...

    def describe_routes(self) -> list[dict[str, Any]]: ...

    def describe_plugins(self) -> list[dict[str, Any]]: ...

    def describe_state(self) -> dict[str, Any]: ...

    def dry_run(self, host: str, path: str, account: str | None) -> dict[str, Any]:
        """Return the route and the steps of a request, without running the steps."""


def application(server: Inspected) -> Starlette:
    async def explain(request: Request) -> JSONResponse:
        story = server.decisions.find(ExchangeId(request.path_params["id"]))
        if story is None:
            return JSONResponse({"message": "the proxy does not remember this exchange"}, status_code=404)
        return JSONResponse(story)

    async def dry_run(request: Request) -> JSONResponse:
        query = request.query_params
        if "host" not in query:
            return JSONResponse(
                {"message": "the parameter host is required; path and account are optional"}, status_code=400
            )
        return JSONResponse(server.dry_run(query["host"], query.get("path", "/"), query.get("account")))

    async def recent(_request: Request) -> JSONResponse:
        return JSONResponse(server.decisions.latest())

    async def routes(_request: Request) -> JSONResponse:
        return JSONResponse(server.describe_routes())

    async def plugins(_request: Request) -> JSONResponse:
        return JSONResponse(server.describe_plugins())

    async def state(_request: Request) -> JSONResponse:
        return JSONResponse(server.describe_state())

    async def reload(_request: Request) -> JSONResponse:
        return JSONResponse((await server.reload.run()).describe())

    return Starlette(
        routes=[
            Route("/exchanges", recent),
            Route("/exchanges/{id}", explain),
            Route("/explain", dry_run),
            Route("/routes", routes),
            Route("/plugins", plugins),
            Route("/state", state),
            Route("/reload", reload, methods=["POST"]),
        ]
    )


@asynccontextmanager
async def serve_admin(server: Inspected, path: Path) -> AsyncIterator[None]:
    """Serve the socket while the context is open.

    Raises:
        SettingsError: the socket cannot be made, or another running process has it.
    """
    try:
        async with serve_admin_socket(application(server), path):
            yield
    except SocketUnavailable as exc:
        raise SettingsError(f"admin.socket {exc}") from exc
