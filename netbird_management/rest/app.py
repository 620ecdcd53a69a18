"""The API as one ASGI application."""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netbird_management.ids import new_id
from netbird_management.rest import (
    accounts,
    clusters,
    dns,
    errors,
    events,
    groups,
    networks,
    openapi,
    peers,
    policies,
    proxy_tokens,
    services,
    setup,
    setup_keys,
    sign_on,
    users,
)
from netbird_management.rest.bounds import RestLimits, with_bounded_bodies
from netbird_management.rest.context import Context
from netbird_management.rest.plugin_routes import add_plugin_routes

ROUTERS: Final = (
    setup,
    users,
    accounts,
    groups,
    peers,
    setup_keys,
    policies,
    networks,
    dns,
    services,
    clusters,
    proxy_tokens,
    events,
    sign_on,
)


def create_app(
    context: Context, extra: Sequence[tuple[str, APIRouter]] = (), limits: RestLimits | None = None
) -> ASGIApp:
    """The whole API under `/api`. No CORS: no other site's page has any business here.

    `extra` are the plugins' routers. Raises `HookError` for one that cannot be added.
    """
    app = api(extra)
    app.state.context = context
    errors.install(app)
    limits = limits or RestLimits()

    @app.get("/api/openapi.json", include_in_schema=False)
    async def described() -> Response:
        return Response(openapi.text(app), media_type="application/json")

    return _with_request_id(with_bounded_bodies(app, limits, context.state.count))


def api(extra: Sequence[tuple[str, APIRouter]] = ()) -> FastAPI:
    """The routes by themselves, to be described."""
    app = FastAPI(title="netbird-management", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for module in ROUTERS:
        app.include_router(module.router, prefix="/api")
    add_plugin_routes(app, [module.router for module in ROUTERS], extra)
    return app


def _with_request_id(app: ASGIApp) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = new_id().encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await app(scope, receive, send_with_id)

    return respond
