"""What we compare with, and the upstream that all of them forward to."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.fixed import BODY
from bench.measure import MEASURED_CORE, OTHER_CORE, pin
from examples.demo.processes import Process, Processes
from examples.demo.stack import Certificates, free_port

LARGE_BYTES = 10_000_000


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


async def _until_ready(process: Process, port: int) -> None:
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


def _nginx_config(directory: Path, servers: str) -> str:
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
    """nginx with a fixed small answer, and a large file at `/large`; its port."""
    home = directory / "upstream"
    home.mkdir()
    (home / "large").write_bytes(bytes(LARGE_BYTES))
    port = free_port()
    text = BODY.decode().replace("\n", "\\n")
    config = home / "nginx.conf"
    config.write_text(
        _nginx_config(
            home,
            f"  server {{ listen 127.0.0.1:{port} backlog=1024;\n"
            f'    location / {{ default_type text/plain; return 200 "{text}"; }}\n'
            f"    location = /large {{ root {home}; }}\n  }}\n",
        )
    )
    process = await processes.start("upstream", ["nginx", "-c", str(config), "-p", str(home)])
    await _until_ready(process, port)
    pin(process.pid, OTHER_CORE)
    return port


async def start_nginx(
    processes: Processes, directory: Path, upstream: int, certificates: Certificates, *, log: bool = False
) -> Subject:
    name = "nginx, access log" if log else "nginx"
    home = directory / ("nginx-log" if log else "nginx")
    home.mkdir()
    plain, tls = free_port(), free_port()
    access = f"access_log {home}/access.log combined buffer=64k flush=1s;" if log else ""
    location = (
        "location / { proxy_max_temp_file_size 0; proxy_pass http://upstream; proxy_http_version 1.1; "
        "proxy_set_header Connection ''; "
        "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; "
        "proxy_set_header X-Forwarded-Host $host; }"
    )
    config = home / "nginx.conf"
    config.write_text(
        _nginx_config(
            home,
            f"  upstream upstream {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}\n"
            f"  server {{ listen 127.0.0.1:{plain}; {access} {location} }}\n"
            f"  server {{ listen 127.0.0.1:{tls} ssl; {access} ssl_certificate {certificates.chain};"
            f" ssl_certificate_key {certificates.key}; {location} }}\n",
        )
    )
    process = await processes.start(home.name, ["nginx", "-c", str(config), "-p", str(home)])
    await _until_ready(process, plain)
    pin(process.pid, MEASURED_CORE)
    return Subject(name, process, {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"})


async def start_caddy(
    processes: Processes, directory: Path, upstream: int, certificates: Certificates, *, log: bool = False
) -> Subject:
    name = "Caddy, access log" if log else "Caddy"
    home = directory / ("caddy-log" if log else "caddy")
    home.mkdir()
    plain, tls = free_port(), free_port()
    access = f"  log {{\n    output file {home}/access.log\n  }}\n" if log else ""
    forward = (
        f"  reverse_proxy 127.0.0.1:{upstream} {{\n    transport http {{\n      keepalive_idle_conns_per_host 64\n"
        "    }\n  }\n"
    )
    config = home / "Caddyfile"
    config.write_text(
        "{\n  admin off\n  auto_https off\n}\n"
        f"http://:{plain} {{\n  bind 127.0.0.1\n{access}{forward}}}\n"
        f"https://:{tls} {{\n  bind 127.0.0.1\n  tls {certificates.chain} {certificates.key}\n{access}{forward}}}\n"
    )
    env = {"XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home), "HOME": str(home), "GOMAXPROCS": "1"}
    process = await processes.start(
        home.name, ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"], env=env
    )
    await _until_ready(process, plain)
    pin(process.pid, MEASURED_CORE)
    return Subject(name, process, {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"})


async def start_uvicorn(processes: Processes, certificates: Certificates) -> Subject:
    plain, tls = free_port(), free_port()
    argv = [sys.executable, "-m", "bench.fixed", str(plain), str(tls), str(certificates.chain), str(certificates.key)]
    process = await processes.start("uvicorn", argv)
    await _until_ready(process, tls)
    pin(process.pid, MEASURED_CORE)
    urls = {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"}
    return Subject("uvicorn, fixed answer", process, urls, forwards=False)
