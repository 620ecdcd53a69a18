"""A fixed answer and an echo of websocket messages under bare uvicorn: the cost of an ASGI server alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

BODY = b"bench: a small body that stands for an answer of an application.\n"
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))],
}
_BODY = {"type": "http.response.body", "body": BODY}


async def app(scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    if scope["type"] == "http":
        await send(_START)
        await send(_BODY)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def main(port: int, tls_port: int, chain: str, key: str) -> None:
    import uvicorn

    common: dict[str, Any] = {
        "host": "127.0.0.1", "log_level": "error", "access_log": False, "lifespan": "off", "http": "httptools",
        "proxy_headers": False, "server_header": False, "date_header": False, "ws_per_message_deflate": False,
    }  # fmt: skip
    plain = uvicorn.Server(uvicorn.Config(app, port=port, **common))
    tls = uvicorn.Server(uvicorn.Config(app, port=tls_port, ssl_certfile=chain, ssl_keyfile=key, **common))
    async with asyncio.TaskGroup() as servers:
        servers.create_task(plain._serve())
        servers.create_task(tls._serve())


if __name__ == "__main__":
    import sys

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
