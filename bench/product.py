"""This proxy as people run it: management, proxy processes with their plugins, a public and a private service."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

from bench.measure import MEASURED_CORE, OTHER_CORE, pin
from bench.overlay import Machine, join
from bench.rows import PRODUCT, TRACED
from bench.servers import Subject, until_ready
from examples.demo.calls import add_service, direct
from examples.demo.stack import CLUSTER, Stack, free_port
from netbird_overlay.wgconf import parse_config

PUBLIC = f"public.{CLUSTER}"
PRIVATE = f"private.{CLUSTER}"
ECHO = f"echo.{CLUSTER}"
LIMITS = "[limits]\nupstream_idle_connections = 320\n"
"""As many as the peers keep: some rows have 256 clients."""


@dataclass(slots=True)
class Product:
    """The running processes.

    Attributes:
        upstream: its port.
        ahead: the port of a listener in front of which TLS ends, as far as the proxy is told: schemes that want TLS
            can be compared without its cost.
        traced: a second proxy of the same cluster, with a collector.
    """

    stack: Stack
    subject: Subject
    upstream: int
    ahead: int
    traced: list[Subject] = field(default_factory=list)


async def _start_traced(stack: Stack) -> Subject:
    """A proxy whose exchanges are traced by none of them being sampled, and which serves its counters."""
    port, health = free_port(), free_port()
    collector = await stack.processes.start("collector", [sys.executable, "-m", "bench.collector", str(port)])
    await until_ready(collector, port)
    pin(collector.pid, OTHER_CORE)
    log = stack.directory / "access-traced.log"
    extra = (
        f'[access_log]\noutput = "{log}"\n[health]\nlisten = "127.0.0.1:{health}"\nmetrics = true\n'
        f'[telemetry]\notlp_endpoint = "http://127.0.0.1:{port}"\nsample = 0.0\n{LIMITS}'
    )
    proxy = await stack.start_proxy("proxy-traced", extra=extra)
    pin(proxy.process.pid, MEASURED_CORE)
    return Subject(TRACED, proxy.process, {"plain": f"http://127.0.0.1:{proxy.http}"}, {"plain": PUBLIC})


async def start_product(
    stack: Stack, upstream: int, where: Machine | None, *, echo: int = 0, traced: bool = False
) -> Product:
    """Start all of it; with a machine, its client has joined and the private service answers it.

    Args:
        echo: the port of a server of websockets, which becomes a service too.
        traced: start the second proxy.
    """
    management = await stack.start_management()
    pin(management.pid, OTHER_CORE)
    log = stack.directory / "access.log"
    ahead = free_port()
    listen = f'[[listen]]\naddress = "127.0.0.1:{ahead}"\nbehind_tls_proxy = true\n'
    proxy = await stack.start_proxy("proxy", extra=f'[access_log]\noutput = "{log}"\n{listen}{LIMITS}')
    pin(proxy.process.pid, MEASURED_CORE)
    second = [await _start_traced(stack)] if traced else []
    async with asyncio.timeout(15):
        online = await stack.online_clusters()
        while not online:
            await asyncio.sleep(0.05)
            online = await stack.online_clusters()
    stack.ids["All"] = (await stack.api.get("/groups?name=All"))[0]["id"]
    await add_service(stack, "public", PUBLIC, direct("127.0.0.1", upstream))
    await stack.until_service("public", "active")
    plain = f"http://127.0.0.1:{proxy.http}"
    urls = {"plain": plain, "tls": f"https://127.0.0.1:{proxy.https}"}
    subject = Subject(PRODUCT, proxy.process, urls, dict.fromkeys(("plain", "tls"), PUBLIC))
    if echo:
        await add_service(stack, "echo", ECHO, direct("127.0.0.1", echo))
        await stack.until_service("echo", "active")
        subject.urls["messages"], subject.hosts["messages"] = plain, ECHO
    if where is not None:
        user = {"email": "load@demo.example", "name": "load", "role": "user", "is_service_user": False}
        stack.ids["load"] = (await stack.api.post("/users", {**user, "auto_groups": []}))["id"]
        await stack.add_peer("load-laptop", user="load")
        await add_service(stack, "private", PRIVATE, direct("127.0.0.1", upstream), groups=["All"])
        await stack.until_service("private", "active")
        file = await stack.write_peer_file("load-laptop")
        await join(stack.processes, where, file, OTHER_CORE)
        address = next(iter(parse_config(file.read_text()).peers)).allowed_ips[0].network_address
        subject.urls["private"] = f"http://{address}"
        subject.hosts["private"] = PRIVATE
        subject.prefix["private"] = where.prefix
    return Product(stack, subject, upstream, ahead, second)
