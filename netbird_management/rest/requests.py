"""The id and log line of each request, and the origins whose pages may call the API."""

import logging
import re
import time
from collections.abc import Sequence
from typing import Final

from fastapi import Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netbird_management.model.ids import new_id
from netbird_management.rest.client_address import client_address
from netbird_management.rest.context import Context
from netbird_management.store.state import acting

_log = logging.getLogger(__name__)
_LONGEST_PATH: Final = 256
_TOKEN: Final = re.compile(r"\bnb[a-z]_\w*")


def with_log(app: ASGIApp, context: Context) -> ASGIApp:
    """Adds an id to each response, and logs one line for each request: without the query, with tokens in the path
    masked."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id, started, status = new_id(), time.monotonic(), 0
        scope.setdefault("state", {})["request_id"] = request_id
        acting.set("")

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        finally:
            _log.info(
                "rest.request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": _TOKEN.sub("nb…", scope["path"])[:_LONGEST_PATH],
                    "status": status,
                    "duration_ms": round((time.monotonic() - started) * 1000),
                    "client": client_address(Request(scope), context.trusted_proxies),
                    "user_id": acting.get(),
                },
            )

    return respond


def request_id(request: Request) -> str:
    """The id in the response's `X-Request-Id`, for further log lines about the request."""
    return str(getattr(request.state, "request_id", ""))


def with_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Permits pages of these origins to call the API. Without any, browsers let no other site's page read responses."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT", "DELETE"),
        allow_headers=("Authorization", "Content-Type"),
        expose_headers=("X-Request-Id",),
    )
