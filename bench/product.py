"""This proxy as people run it: management, one proxy process with its plugins, a public and a private service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench.measure import MEASURED_CORE, OTHER_CORE, pin
from bench.overlay import Machine, join
from bench.servers import Subject
from examples.demo.calls import add_service, direct
from examples.demo.stack import CLUSTER, Stack, free_port
from netbird_overlay.wgconf import parse_config

PUBLIC = f"public.{CLUSTER}"
PRIVATE = f"private.{CLUSTER}"


@dataclass(slots=True)
class Product:
    """What runs.

    Attributes:
        upstream: its port.
        ahead: the port of a listener in front of which TLS ends, as far as the proxy is told: schemes that want TLS
            can be compared without its cost.
    """

    stack: Stack
    subject: Subject
    upstream: int
    ahead: int


async def start_product(stack: Stack, upstream: int, where: Machine | None) -> Product:
    """Start all of it; with a machine, its client has joined and the private service answers it."""
    management = await stack.start_management()
    pin(management.pid, OTHER_CORE)
    log = stack.directory / "access.log"
    ahead = free_port()
    listen = f'[[listen]]\naddress = "127.0.0.1:{ahead}"\nbehind_tls_proxy = true\n'
    proxy = await stack.start_proxy("proxy", extra=f'[access_log]\noutput = "{log}"\n{listen}')
    pin(proxy.process.pid, MEASURED_CORE)
    async with asyncio.timeout(15):
        online = await stack.online_clusters()
        while not online:
            await asyncio.sleep(0.05)
            online = await stack.online_clusters()
    stack.ids["All"] = (await stack.api.get("/groups?name=All"))[0]["id"]
    await add_service(stack, "public", PUBLIC, direct("127.0.0.1", upstream))
    await stack.until_service("public", "active")
    urls = {"plain": f"http://127.0.0.1:{proxy.http}", "tls": f"https://127.0.0.1:{proxy.https}"}
    subject = Subject("netbird-proxy", proxy.process, urls, dict.fromkeys(("plain", "tls"), PUBLIC))
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
    return Product(stack, subject, upstream, ahead)
