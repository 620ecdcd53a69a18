"""An identity provider for tests of logins by a code."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


@dataclass
class FakeProvider:
    """An identity provider, and a management that names it, on one address. Its answers are scripted.

    Attributes:
        answers: to questions for the token, in their order: a status and a body; a body of None drops the connection.
        granted: what it answers to a request for a code, beside its defaults.
    """

    url: str = ""
    answers: list[tuple[int, dict[str, Any] | None]] = field(default_factory=list)
    granted: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    named: Response | None = None
    forms: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/agent-login", self._agent_login),
                Route("/.well-known/openid-configuration", self._describe),
                Route("/device", self._device, methods=["POST"]),
                Route("/token", self._token, methods=["POST"]),
            ]
        )

    def _agent_login(self, _: Request) -> Response:
        return self.named or JSONResponse({"issuer": self.url, "client_id": "agents"})

    def _describe(self, _: Request) -> Response:
        endpoints = {"device_authorization_endpoint": f"{self.url}/device", "token_endpoint": f"{self.url}/token"}
        return JSONResponse({"issuer": self.url} | endpoints | self.described)

    async def _device(self, request: Request) -> Response:
        self.forms.append(await _form(request))
        granted = {"device_code": "d-1", "user_code": "WDJB-MJHT", "verification_uri": f"{self.url}/page"}
        return JSONResponse(granted | {"expires_in": 600} | self.granted)

    async def _token(self, request: Request) -> Response:
        self.forms.append(await _form(request))
        status, body = self.answers.pop(0)
        return JSONResponse(body, status) if body is not None else PlainTextResponse("bad gateway", 502)


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode()))


@asynccontextmanager
async def serving_provider(provider: FakeProvider) -> AsyncIterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        provider.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(provider.app(), log_level="error", lifespan="off"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server._serve([sock]))
            try:
                yield
            finally:
                server.should_exit = True
