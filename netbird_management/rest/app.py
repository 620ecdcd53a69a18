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
    """The whole API under `/api`. Pages of `allowed_origins` may call it, those of other sites may not.

    `extra` are the plugins' routers. Raises `HookError` for one that cannot be added.
    """
    served = _served(extra) if extra else _own()
    app = with_bounded_bodies(served, limits or RestLimits(), context.state.count)
    return with_log(with_origins(_with_context(app, context), allowed_origins), context)


@cache
def _own() -> FastAPI:
    """Made once, as routes take long to make; the context comes with each request."""
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
