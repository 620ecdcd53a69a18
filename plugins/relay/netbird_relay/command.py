"""`netbird-relay run`: a relay as a process of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from netbird_host.shutdown import Shutdown, on_signals
from netbird_relay import opening
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.server import RelayServer

app = typer.Typer(
    help="The relay of a NetBird network: carries WireGuard datagrams between peers that have no direct path.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_log = structlog.get_logger(__name__)
DEFAULTS = Limits()


@app.callback()
def _commands() -> None:
    """Keeps `run` a command of its own."""


@app.command()
def run(
    listen: Annotated[str, typer.Option(help="HOST:PORT of the WebSocket's listener; without HOST, all addresses.")],
    exposed_url: Annotated[str, typer.Option(help="URL at which all peers reach this relay: rel:// or rels://.")],
    secret_file: Annotated[Path, typer.Option(help="File with the secret that management and its relays share.")],
    certificate: Annotated[Path | None, typer.Option(help="PEM file with the certificate chain; else plain.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.")] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="Network of reverse proxies whose X-Forwarded-For is true; repeatable.")
    ] = None,
    stun: Annotated[str, typer.Option(help="HOST:PORT of a STUN server over UDP; none if not given.")] = "",
    connections: Annotated[int, typer.Option(min=1, help="Maximum number of connections.")] = DEFAULTS.connections,
    connections_per_address: Annotated[
        int, typer.Option(min=1, help="Of them, from one IPv4 address or IPv6 /64.")
    ] = DEFAULTS.connections_per_address,
    subscriptions: Annotated[
        int, typer.Option(min=1, help="Maximum number of subscriptions of all peers; each takes about 300 bytes.")
    ] = DEFAULTS.subscriptions,
    bytes_per_second: Annotated[
        int, typer.Option(min=0, help="Rate at which one peer may send; 0 for no limit.")
    ] = DEFAULTS.bytes_per_second,
) -> None:
    """Serve until SIGTERM or SIGINT. Prints `ready HOST:PORT` when it listens; reads a changed certificate again."""
    limits = Limits(
        connections=connections,
        connections_per_address=connections_per_address,
        unauthenticated_per_address=min(DEFAULTS.unauthenticated_per_address, connections_per_address),
        subscriptions=subscriptions,
        bytes_per_second=bytes_per_second,
    )
    with ExitStack() as sockets:
        try:
            url = opening.own_url(exposed_url)
            trusted = [ip_network(network) for network in trusted_proxy or ()]
            chain = opening.certificate(certificate, key)
            identity = Identity(opening.read_secret(secret_file), url.text)
            listener = sockets.enter_context(opening.bind(listen, socket.SOCK_STREAM))
            stuns = [sockets.enter_context(opening.bind(stun, socket.SOCK_DGRAM))] if stun else []
        except (ValueError, opening.CannotServe) as exc:
            raise typer.BadParameter(str(exc)) from exc
        _configure_logs()
        if chain is None and url.secure:
            _log.warning("relay.plain_behind_tls", url=url.text)
        uvloop.run(_serve(RelayServer(identity, limits, trusted), listener, chain, stuns))


async def _serve(
    server: RelayServer,
    listener: socket.socket,
    chain: opening.Certificate | None,
    stuns: list[socket.socket],
) -> None:
    with on_signals(ends_process=True) as shutdown:
        host, port = listener.getsockname()[:2]
        stun_port = stuns[0].getsockname()[1] if stuns else 0
        _log.info("relay.listening", host=host, port=port, tls=chain is not None, stun_port=stun_port)
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"ready {shown}:{port}" + (f" stun={shown}:{stun_port}" if stuns else ""))
        sys.stdout.flush()
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(_stop_on_request(shutdown, server))
            await server.run([listener], tls=chain.context if chain is not None else None, stun=stuns)
            stopping.cancel()
        server.report()
        _log.info("relay.stopped")


async def _stop_on_request(shutdown: Shutdown, server: RelayServer) -> None:
    await shutdown.wait()
    server.stop()


def _configure_logs() -> None:
    """One line an event, as JSON unless a person reads it on a terminal."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    app()
