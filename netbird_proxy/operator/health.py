"""Whether we live and whether to send us clients: for load balancers and supervisors, on a listener of its own.

Anybody who reaches the listener may ask, so an answer is a word and no more; numbers are told only where the operator
says that those who reach it may have them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import Address
from netbird_proxy.asgi import ASGIApp, Receive, Scope, Send
from netbird_proxy.listening.connections import Connections, ListenLimits
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import serve_host

LIMITS = ListenLimits(
    connections=256, client_connections=64, head_timeout=5, head_bytes=8192, head_lines=50, idle_timeout=30
)
"""Those who probe ask now and then, and ask little."""


class Watched(Protocol):
    """What is told of the server."""

    @property
    def unready(self) -> str:
        """Why no client should be sent here now, in a word or two; empty when they should."""

    def numbers(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """What only grows, and what comes and goes, each by its name."""


def application(server: Watched, *, metrics: bool) -> ASGIApp:
    """`/livez`, `/readyz`, and `/metrics` where it is wanted."""

    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, text = 404, b"text/plain; charset=utf-8", "not found\n"
        if scope["method"] not in ("GET", "HEAD"):
            status, text = 405, "GET or HEAD\n"
        elif scope["path"] == "/livez":
            status, text = 200, "ok\n"
        elif scope["path"] == "/readyz":
            why = server.unready
            status, text = (503, f"{why}\n") if why else (200, "ok\n")
        elif scope["path"] == "/metrics" and metrics:
            status, kind, text = 200, b"text/plain; version=0.0.4; charset=utf-8", exposition(*server.numbers())
        body = text.encode()
        headers = [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return answer


def exposition(growing: Mapping[str, int], others: Mapping[str, int]) -> str:
    """Numbers as Prometheus reads them."""

    def lines() -> Iterable[str]:
        for kind, numbers in (("counter", growing), ("gauge", others)):
            for name, value in sorted(numbers.items()):
                full = f"netbird_proxy_{name}" + ("_total" if kind == "counter" else "")
                yield f"# TYPE {full} {kind}\n{full} {value}\n"

    return "".join(lines())


@asynccontextmanager
async def serve_health(server: Watched, listen: Address | None, *, metrics: bool) -> AsyncIterator[Sequence[Address]]:
    """The listener, while this lasts, which is as long as the proxy drains; its addresses.

    Raises:
        SettingsError: the address cannot be had.
    """
    if listen is None:
        yield ()
        return
    # Origins of its own: nothing that came in here counts as having come in where clients do.
    connections = Connections(application(server, metrics=metrics), origins=Origins(), listener="health", limits=LIMITS)
    try:
        listener = await serve_host(connections, listen)
    except SettingsError as exc:
        raise SettingsError(f"health: {exc}") from exc
    try:
        yield listener.addresses
    finally:
        listener.close()
        await listener.drain(0)
