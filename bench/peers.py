"""The servers that this proxy is compared with, each configured to forward and to keep its connections."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.measure import MEASURED_CORE, pin
from bench.servers import Subject, nginx_config, until_ready
from examples.demo.processes import Processes
from examples.demo.stack import Certificates, free_port

ROOT = Path(__file__).parent.parent


async def start_nginx(
    processes: Processes, directory: Path, upstream: int, certificates: Certificates, *, log: bool = False
) -> Subject:
    name = "nginx, access log" if log else "nginx"
    home = directory / ("nginx-log" if log else "nginx")
    home.mkdir()
    plain, tls = free_port(), free_port()
    access = f"access_log {home}/access.log combined buffer=64k flush=1s;" if log else ""
    location = (
        "location / { client_max_body_size 0; proxy_request_buffering off; "
        "proxy_max_temp_file_size 0; proxy_pass http://upstream; proxy_http_version 1.1; "
        "proxy_set_header Connection ''; "
        "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; "
        "proxy_set_header X-Forwarded-Host $host; }"
    )
    config = home / "nginx.conf"
    config.write_text(
        nginx_config(
            home,
            f"  upstream upstream {{ server 127.0.0.1:{upstream}; keepalive 320; keepalive_requests 100000000; }}\n"
            f"  server {{ listen 127.0.0.1:{plain}; {access} {location} }}\n"
            f"  server {{ listen 127.0.0.1:{tls} ssl; {access} ssl_certificate {certificates.chain};"
            f" ssl_certificate_key {certificates.key}; {location} }}\n",
        )
    )
    process = await processes.start(home.name, ["nginx", "-c", str(config), "-p", str(home)])
    await until_ready(process, plain)
    pin(process.pid, MEASURED_CORE)
    return Subject(name, process, {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"})


async def start_caddy(
    processes: Processes,
    directory: Path,
    upstream: int,
    certificates: Certificates,
    *,
    log: bool = False,
    program: Path = Path("caddy"),
    name: str = "Caddy",
) -> Subject:
    name = f"{name}, access log" if log else name
    home = directory / name.lower().replace(", ", "-").replace(" ", "-")
    home.mkdir()
    plain, tls = free_port(), free_port()
    access = f"  log {{\n    output file {home}/access.log\n  }}\n" if log else ""
    forward = (
        f"  reverse_proxy 127.0.0.1:{upstream} {{\n    transport http {{\n      keepalive_idle_conns_per_host 320\n"
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
        home.name, [str(program), "run", "--config", str(config), "--adapter", "caddyfile"], env=env
    )
    await until_ready(process, plain)
    pin(process.pid, MEASURED_CORE)
    return Subject(name, process, {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"})


async def start_uvicorn(
    processes: Processes, certificates: Certificates, *, name: str = "uvicorn", core: int = MEASURED_CORE
) -> Subject:
    """A fixed answer, and an echo for websockets."""
    plain, tls = free_port(), free_port()
    argv = [sys.executable, "-m", "bench.fixed", str(plain), str(tls), str(certificates.chain), str(certificates.key)]
    process = await processes.start(name, argv)
    await until_ready(process, tls)
    pin(process.pid, core)
    urls = {
        "plain": f"http://127.0.0.1:{plain}",
        "tls": f"https://127.0.0.1:{tls}",
        "messages": f"http://127.0.0.1:{plain}",
    }
    return Subject("uvicorn, fixed answer", process, urls, forwards=False)


async def start_granian(processes: Processes, commands: Path) -> Subject:
    """The same fixed answer as uvicorn's, under a server whose HTTP is in Rust. Without TLS."""
    port = free_port()
    argv = [
        str(commands / "granian"), "--interface", "asginl", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--loop", "uvloop", "--http", "1", "--no-ws", "--no-access-log", "--log-level", "error",
        "--working-dir", str(ROOT), "bench.fixed:app",
    ]  # fmt: skip
    process = await processes.start("granian", argv)
    await until_ready(process, port)
    pin(process.pid, MEASURED_CORE)
    return Subject("granian, fixed answer", process, {"plain": f"http://127.0.0.1:{port}"}, forwards=False)


async def start_mitmproxy(
    processes: Processes, directory: Path, upstream: int, certificates: Certificates, commands: Path
) -> Subject:
    """mitmproxy in reverse mode; one port takes both kinds of connections."""
    home = directory / "mitmproxy"
    home.mkdir()
    both = home / "both.pem"
    both.write_bytes(certificates.key.read_bytes() + certificates.chain.read_bytes())
    port = free_port()
    argv = [
        str(commands / "mitmdump"), "--quiet", "--mode", f"reverse:http://127.0.0.1:{upstream}",
        "--listen-host", "127.0.0.1", "--listen-port", str(port), "--certs", f"*={both}",
        "--set", f"confdir={home}", "--set", "flow_detail=0", "--set", "keep_host_header=true",
    ]  # fmt: skip
    process = await processes.start("mitmproxy", argv)
    await until_ready(process, port)
    pin(process.pid, MEASURED_CORE)
    return Subject("mitmproxy", process, {"plain": f"http://127.0.0.1:{port}", "tls": f"https://127.0.0.1:{port}"})


async def start_haproxy(processes: Processes, directory: Path, upstream: int, certificates: Certificates) -> Subject:
    home = directory / "haproxy"
    home.mkdir()
    both = home / "both.pem"
    both.write_bytes(certificates.key.read_bytes() + certificates.chain.read_bytes())
    plain, tls = free_port(), free_port()
    config = home / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 4096\n"
        "defaults\n  mode http\n  timeout connect 10s\n  timeout client 75s\n  timeout server 300s\n"
        "  option forwardfor\n  http-reuse always\n"
        f"frontend entry\n  bind 127.0.0.1:{plain}\n  bind 127.0.0.1:{tls} ssl crt {both}\n"
        f"  default_backend upstream\nbackend upstream\n  server one 127.0.0.1:{upstream} pool-max-conn 320\n"
    )
    process = await processes.start("haproxy", ["haproxy", "-db", "-f", str(config)])
    await until_ready(process, plain)
    pin(process.pid, MEASURED_CORE)
    return Subject("HAProxy", process, {"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"})
