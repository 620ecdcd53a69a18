"""A process under load, and the upstream that all of them forward to."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.fixed import BODY
from bench.measure import OTHER_CORE, pin
from examples.demo.processes import Process, Processes
from examples.demo.stack import free_port

LARGE_BYTES = 10_000_000
MIDDLE_BYTES = 16_384


@dataclass(slots=True)
class Subject:
    """One process under load.

    Attributes:
        urls: `plain`, `tls`, `private` → where it answers with the small body; `/large` is the large one.
        prefix: what the load generator runs under for a kind.
    """

    name: str
    process: Process
    urls: dict[str, str]
    hosts: dict[str, str] = field(default_factory=dict)
    prefix: dict[str, list[str]] = field(default_factory=dict)
    forwards: bool = True


async def until_ready(process: Process, port: int) -> None:
    async with asyncio.timeout(20):
        while process.running:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
    raise RuntimeError(f"{process.name} ended:\n{process.tail()}")


def nginx_config(directory: Path, servers: str) -> str:
    temporary = "".join(
        f"  {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;\n"
        "events { worker_connections 1024; }\n"
        "http {\n  access_log off; keepalive_requests 100000000; sendfile on; tcp_nopush on;\n"
        f"{temporary}{servers}}}\n"
    )


async def start_upstream(processes: Processes, directory: Path) -> int:
    """nginx with a fixed small answer, files at `/16k` and `/large`, and `/sink`, which takes bodies; its port."""
    home = directory / "upstream"
    home.mkdir()
    (home / "large").write_bytes(bytes(LARGE_BYTES))
    (home / "16k").write_bytes(bytes(MIDDLE_BYTES))
    port, sink = free_port(), free_port()
    text = BODY.decode().replace("\n", "\\n")
    config = home / "nginx.conf"
    config.write_text(
        nginx_config(
            home,
            f"  upstream sink {{ server 127.0.0.1:{sink}; keepalive 64; }}\n"
            f"  server {{ listen 127.0.0.1:{port} backlog=1024;\n"
            f'    location / {{ default_type text/plain; return 200 "{text}"; }}\n'
            f"    location = /16k {{ default_type text/plain; root {home}; }}\n"
            f"    location = /large {{ root {home}; }}\n"
            "    location = /sink { proxy_pass http://sink; proxy_http_version 1.1; proxy_set_header Connection '';"
            " proxy_request_buffering off; client_max_body_size 0; }\n  }\n",
        )
    )
    taker = await processes.start("sink", [sys.executable, "-m", "bench.sink", str(sink)])
    await until_ready(taker, sink)
    pin(taker.pid, OTHER_CORE)
    process = await processes.start("upstream", ["nginx", "-c", str(config), "-p", str(home)])
    await until_ready(process, port)
    pin(process.pid, OTHER_CORE)
    return port
