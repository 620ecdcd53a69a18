"""Management's REST interface, as far as the story needs it."""

from __future__ import annotations

from typing import Any

import httpx


class ApiError(Exception):
    """Management refused a call; the message has the status and the reason."""


class Api:
    """A client of `/api` with one user's token."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"{url}/api", headers={"authorization": f"Token {token}"}, timeout=15, trust_env=False
        )

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Any:
        return await self._call("GET", path)

    async def post(self, path: str, body: Any) -> Any:
        return await self._call("POST", path, body)

    async def put(self, path: str, body: Any) -> Any:
        return await self._call("PUT", path, body)

    async def delete(self, path: str) -> None:
        _check(await self._client.delete(path))

    async def text(self, path: str) -> str:
        answer = await self._client.get(path)
        _check(answer)
        return answer.text

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self._client.request(method, path, json=body)
        _check(answer)
        return answer.json()


def _check(answer: httpx.Response) -> None:
    if answer.is_error:
        raise ApiError(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text.strip()}")
