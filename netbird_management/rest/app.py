"""The API as one ASGI application."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

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
    unsupported,
    users,
)
from netbird_management.rest.bounds import RestLimits, with_bounded_bodies
from netbird_management.rest.context import Context
from netbird_management.rest.openapi import PREFIX
from netbird_management.rest.plugin_routes import add_plugin_routes
from netbird_management.rest.requests import with_log, with_origins

OWN: Final = tuple(
    module.router
    for module in (
        unsupported,
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
    context: Context,
    extra: Sequence[tuple[str, APIRouter]] = (),
    limits: RestLimits | None = None,
    *,
    allowed_origins: Sequence[str] = (),
) -> ASGIApp:
    """The whole API under `/api`. A browser lets pages of `allowed_origins` call it, and no other site's pages.

    `extra` are the plugins' routers. Raises `HookError` for a router that cannot be added.
    """
    served = _served(extra) if extra else _own()
    app = with_bounded_bodies(served, limits or RestLimits(), context.state.count)
    return with_log(with_origins(_with_context(app, context), allowed_origins), context)


@cache
def _own() -> FastAPI:
    """The host's own routes. They are slow to build, so all hosts of a process share them; each request carries its
    host's context."""
    return _served(())


def _served(extra: Sequence[tuple[str, APIRouter]]) -> FastAPI:
    app = api(extra)
    errors.install(app)

    @app.get("/api/openapi.json", include_in_schema=False)
    async def described() -> Response:
        return Response(openapi.text(openapi.document(app, OWN)), media_type="application/json")

    return app


def api(extra: Sequence[tuple[str, APIRouter]] = ()) -> FastAPI:
    """The routes without limits, log and context: enough to generate the OpenAPI document from."""
    app = FastAPI(title="netbird-management", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for router in OWN:
        app.include_router(router, prefix=PREFIX, responses=errors.REFUSED)
    add_plugin_routes(app, OWN, extra)
    return app


def described(extra: Sequence[tuple[str, APIRouter]] = ()) -> dict[str, Any]:
    """The OpenAPI document, with the plugins' routes."""
    return openapi.document(api(extra), OWN)


def _with_context(app: ASGIApp, context: Context) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["context"] = context
        await app(scope, receive, send)

    return respond
