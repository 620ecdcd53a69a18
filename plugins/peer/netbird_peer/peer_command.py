"""`netbird-peer` and `netbird-proxy peer`: an overlay peer for people without root, for the demo and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from netbird_overlay.engine import Rule
from netbird_overlay.errors import OverlayError
from netbird_overlay.network_map import TCP_NUMBER
from netbird_overlay.wgconf import ConfigError, WireGuardConfig, parse_config
from netbird_peer.fetch import FetchError, Request, Response, fetch
from netbird_peer.node import peer_node
from netbird_peer.pipe import Forwarder

T = TypeVar("T")

HTTP_ERROR = 22
"""Exit code for a status of 400 or above, like curl's with `--fail`."""

app = typer.Typer(
    name="peer",
    help="Run an overlay peer in userspace, from a WireGuard file.",
    no_args_is_help=True,
    add_completion=False,
)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="WireGuard configuration file.")]


@app.command()
def get(
    url: Annotated[str, typer.Argument(help="http:// or https:// address of a service.")],
    config: ConfigFile,
    resolve: Annotated[list[str] | None, typer.Option(help="HOST=ADDR: the overlay address of a name.")] = None,
    cacert: Annotated[Path | None, typer.Option(help="PEM file of certificate authorities to trust.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="A request header.")] = None,
    include: Annotated[bool, typer.Option("--include", "-i", help="Print the answer's head too.")] = False,
    request: Annotated[str, typer.Option("--request", "-X", help="The method.")] = "",
    data: Annotated[str | None, typer.Option("--data", "-d", help="Body, or @FILE; makes it a POST.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Maximum time in seconds.")] = 30.0,
) -> None:
    """Fetch a page through the tunnel. Exit code 22 for a status of 400 or above.

    If the file has exactly one [Peer] with one /32, every name without --resolve leads to that peer.
    """
    settings = _read(config)
    try:
        body = None if data is None else Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        outgoing = Request.of(url, method=request, headers=header or (), body=body)
        address = _overlay_address(outgoing.host, settings, resolve or [])
        tls = ssl.create_default_context(cafile=cacert) if outgoing.secure else None
    except (ValueError, OSError) as exc:
        _fail(str(exc))

    def show_head(response: Response) -> None:
        if include:
            lines = [f"HTTP/1.1 {response.status} {response.reason}"]
            lines += [f"{name}: {value}" for name, value in response.headers]
            show_body("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    def show_body(chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    async def run() -> int:
        async with peer_node(settings) as driver:
            response = await fetch(
                driver, outgoing, address, tls=tls, timeout=timeout, on_head=show_head, on_body=show_body
            )
            return response.status

    if (_run(run()) or 0) >= 400:
        raise typer.Exit(HTTP_ERROR)


@app.command()
def serve(
    forward: Annotated[list[str], typer.Argument(help="PORT=HOST:PORT: overlay port, and where its streams go.")],
    config: ConfigFile,
) -> None:
    """Offer local servers to the file's peers. Prints `ready` when it listens, and runs until a signal."""
    settings = _read(config)
    try:
        forwards = [_forward(text) for text in forward]
    except ValueError as exc:
        _fail(str(exc))

    async def run() -> None:
        async with peer_node(settings) as driver, asyncio.TaskGroup() as group:
            driver.engine.set_inbound(_rules(settings, [port for port, _, _ in forwards]))
            for port, host, target in forwards:
                driver.listen(port, Forwarder(group, host, target))
            addresses = ", ".join(str(address.ip) for address in settings.addresses)
            print(f"ready on {addresses}: {', '.join(forward)}", flush=True)
            await _until_signal()

    _run(run())


def _read(path: Path) -> WireGuardConfig:
    try:
        return parse_config(path.read_text(encoding="utf-8"), name=str(path))
    except ConfigError as exc:
        _fail(str(exc))
    except (OSError, UnicodeDecodeError) as exc:
        _fail(f"{path} cannot be read: {exc}")


def _overlay_address(host: str, config: WireGuardConfig, resolve: list[str]) -> str:
    """Return the overlay address of a URL's host. Raises ValueError."""
    for entry in resolve:
        name, equals, address = entry.partition("=")
        if not equals:
            raise ValueError(f"--resolve {entry!r} is not HOST=ADDR")
        if name.lower().rstrip(".") == host.lower().rstrip("."):
            return str(ip_address(address.strip("[]")))
    with contextlib.suppress(ValueError):
        return str(ip_address(host))
    single = [network for peer in config.peers for network in peer.allowed_ips if network.version == 4]
    if len(config.peers) == 1 and len(single) == 1 and single[0].prefixlen == 32:
        return str(single[0].network_address)
    raise ValueError(f"the file has no address for {host}: add --resolve {host}=ADDR")


def _forward(text: str) -> tuple[int, str, int]:
    port, equals, target = text.partition("=")
    host, colon, target_port = target.rpartition(":")
    try:
        numbers = int(port), int(target_port)
    except ValueError:
        numbers = (0, 0)
    if not equals or not colon or not host or not all(0 < number < 65536 for number in numbers):
        raise ValueError(f"{text!r} is not PORT=HOST:PORT")
    return numbers[0], host.strip("[]"), numbers[1]


def _rules(config: WireGuardConfig, ports: list[int]) -> list[Rule]:
    """Return rules that allow the file's peers to open connections to these ports only."""
    sources = [str(network) for peer in config.peers for network in peer.allowed_ips]
    return [(source, TCP_NUMBER, port, port) for source in sources for port in ports]


async def _until_signal() -> None:
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    await signalled.wait()
    raise _Signalled


class _Signalled(Exception):
    """Ends the command after a signal, through all task groups."""


EXPECTED = (OverlayError, ConfigError, FetchError, OSError, _Signalled)  # a TimeoutError is an OSError


def _run(main: Coroutine[Any, Any, T]) -> T | None:
    """Run the command; exit with a message for failures of files, peers and the network."""
    try:
        return asyncio.run(main)
    except (*EXPECTED, BaseExceptionGroup) as exc:
        leaves = _leaves(exc)
        if not all(isinstance(leaf, EXPECTED) for leaf in leaves):
            raise
        if all(isinstance(leaf, _Signalled) for leaf in leaves):
            return None
        _fail("; ".join(dict.fromkeys(str(leaf) or "no complete answer in time" for leaf in leaves)))


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [exc]


def main() -> None:
    """The entry point of `netbird-peer`."""
    app(prog_name="netbird-peer")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
