"""The health listener: liveness, readiness and metrics, for load balancers and supervisors.

Anybody who reaches the listener may ask, so an answer is one word. Metrics are served only if they are enabled.
"""

from __future__ import annotations

import json
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

    def checks(self) -> Mapping[str, bool]:
        """Return the checks of NetBird's health pages, by their names: `management_connected`,
        `initial_sync_complete` and `all_clients_healthy` (each account's tunnel is up)."""

    def numbers(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return counters and gauges, by name."""


def application(server: Watched, *, metrics: bool) -> ASGIApp:
    """Serve `/livez`, `/readyz`, NetBird's `/healthz` paths and, if `metrics` is true, `/metrics`."""

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
        elif (checked := NETBIRD_PATHS.get(scope["path"])) is not None:
            kind = b"application/json"
            status, text = _netbird_health(server, *checked)
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


ALL_CHECKS = ("all_clients_healthy", "initial_sync_complete", "management_connected")
NETBIRD_PATHS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "/healthz/live": ((), ()),
    "/healthz/ready": (("management_connected",), ("management_connected",)),
    "/healthz/startup": (ALL_CHECKS, ALL_CHECKS),
    "/healthz": (ALL_CHECKS, ("management_connected",)),
}
"""Paths of NetBird's proxy: the checks that each shows, and those of them that must hold."""


def _netbird_health(server: Watched, shown: Sequence[str], required: Sequence[str]) -> tuple[int, str]:
    """Return the status and the page as NetBird's proxy answers, without its list of accounts and their peers, which
    are no business of a stranger."""
    checks = server.checks()
    # A proxy that stops or stalls is no place for clients, whatever its connection to management is.
    healthy = all(checks[name] for name in required) and not (required and server.unready)
    page: dict[str, object] = {"status": "ok" if healthy else "fail"}
    if shown:
        page["checks"] = {name: checks[name] for name in shown}
    return (200 if healthy else 503), json.dumps(page, separators=(",", ":")) + "\n"


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
