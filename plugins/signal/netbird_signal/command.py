"""`netbird-signal`: the signal server as a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import structlog
import typer

from netbird_signal.alone import Alone, serve_alone
from netbird_signal.exchange import Limits
from netbird_signal.rates import Rate

DEFAULTS = Limits()
ALONE_MESSAGES_PER_SECOND = 5_000
SECONDS_OF_BURST = 10

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def netbird_signal() -> None:
    """The signal server of a NetBird network."""


@app.command()
def run(
    listen: Annotated[str, typer.Option(help="Address to listen on, HOST:PORT; port 0 picks a free one.")],
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file with the certificate chain. With it the port has TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's private key.")] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="Network of reverse proxies whose x-forwarded-for is true; repeatable.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Maximum number of registered peers.")] = DEFAULTS.streams,
    streams_of_address: Annotated[
        int, typer.Option(min=1, help="Maximum number of registered peers of one address (IPv6: a /64).")
    ] = DEFAULTS.streams_of_source,
    messages_per_second: Annotated[
        int, typer.Option(min=1, help="Rate of messages above which peers that send much are refused.")
    ] = ALONE_MESSAGES_PER_SECOND,
) -> None:
    """Serve until SIGTERM or SIGINT. Prints `ready HOST:PORT` when it listens; logs JSON lines to standard error."""
    if (certificate is None) != (key is None):
        _stop("--certificate and --key belong together")
    rate = Rate(messages_per_second, SECONDS_OF_BURST * messages_per_second)
    try:
        settings = Alone(
            listen,
            certificate,
            key,
            [ip_network(network) for network in trusted_proxy or ()],
            Limits(streams=streams, streams_of_source=streams_of_address, all_messages=rate),
        )
        asyncio.run(_run(settings))
    except (OSError, ValueError) as error:
        _stop(str(error))


async def _run(settings: Alone) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve_alone(settings) as running:
        _configure_logs()
        host = settings.listen.rpartition(":")[0]
        typer.echo(f"ready {host}:{running.port}")
        sys.stdout.flush()
        await stop.wait()
        # The second signal has the system's default action: it ends the process without waiting for calls.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _configure_logs() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(),
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso"),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _stop(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    app(prog_name="netbird-signal")


if __name__ == "__main__":
    main()
