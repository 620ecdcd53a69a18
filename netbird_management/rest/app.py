"""The API as one ASGI application."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netbird_management.model.ids import new_id
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
from netbird_management.rest.openapi import PREFIX
from netbird_management.rest.plugin_routes import add_plugin_routes

OWN: Final = tuple(
    module.router
    for module in (
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
)


def create_app(
    context: Context, extra: Sequence[tuple[str, APIRouter]] = (), limits: RestLimits | None = None
) -> ASGIApp:
    """The whole API under `/api`. No CORS: no other site's page has any business here.

    `extra` are the plugins' routers. Raises `HookError` for one that cannot be added.
    """
    served = _served(extra) if extra else _own()
    app = with_bounded_bodies(served, limits or RestLimits(), context.state.count)
    return _with_request_id(_with_context(app, context))


@cache
def _own() -> FastAPI:
    """Routes cost much to make and know no context, which comes with each request: one making does for all."""
    return _served(())


def _served(extra: Sequence[tuple[str, APIRouter]]) -> FastAPI:
    app = api(extra)
    errors.install(app)

    @app.get("/api/openapi.json", include_in_schema=False)
    async def described() -> Response:
        return Response(openapi.text(openapi.document(app, OWN)), media_type="application/json")

    return app


def api(extra: Sequence[tuple[str, APIRouter]] = ()) -> FastAPI:
    """The routes by themselves, to be described."""
    app = FastAPI(title="netbird-management", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for router in OWN:
        app.include_router(router, prefix=PREFIX, responses=errors.REFUSED)
    add_plugin_routes(app, OWN, extra)
    return app


def described(extra: Sequence[tuple[str, APIRouter]] = ()) -> dict[str, Any]:
    """The document of the API, with the plugins' routes."""
    return openapi.document(api(extra), OWN)


def _with_context(app: ASGIApp, context: Context) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["context"] = context
        await app(scope, receive, send)

    return respond


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
