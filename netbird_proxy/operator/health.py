"""The health listener: liveness, readiness and metrics, for load balancers and supervisors.

Anybody who reaches the listener may ask, so an answer is one word. Metrics are served only if they are enabled.
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
"""Limits for probes, which are small and rare."""


class Watched(Protocol):
    """The part of the server that the listener reports."""

    @property
    def unready(self) -> str:
        """Return the reason for which no client should be sent here now, in a few words; empty if ready."""

    def numbers(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return counters and gauges, by name."""


def application(server: Watched, *, metrics: bool) -> ASGIApp:
    """Serve `/livez`, `/readyz` and, if `metrics` is true, `/metrics`."""

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


def exposition(counters: Mapping[str, int], gauges: Mapping[str, int]) -> str:
    """Return the numbers in the text format of Prometheus."""

    def lines() -> Iterable[str]:
        for kind, numbers in (("counter", counters), ("gauge", gauges)):
            for name, value in sorted(numbers.items()):
                full = f"netbird_proxy_{name}" + ("_total" if kind == "counter" else "")
                yield f"# TYPE {full} {kind}\n{full} {value}\n"

    return "".join(lines())


@asynccontextmanager
async def serve_health(server: Watched, listen: Address | None, *, metrics: bool) -> AsyncIterator[Sequence[Address]]:
    """Serve the health listener while the context is open, also while the proxy drains. Yields its addresses.

    Raises:
        SettingsError: the address cannot be used.
    """
    if listen is None:
        yield ()
        return
    # Origins of its own, so that a request on this listener never counts as one of a client.
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
