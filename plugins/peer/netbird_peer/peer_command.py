"""`netbird-peer` and `netbird-proxy peer`: an overlay peer for people without root, for the demo and for tests."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netbird_overlay.driver import Driver
from netbird_overlay.engine import Rule
from netbird_overlay.errors import OverlayError
from netbird_overlay.network_map import TCP_NUMBER, UDP_NUMBER
from netbird_overlay.wgconf import ConfigError, WireGuardConfig
from netbird_peer.access import Overlay, overlay, read_config
from netbird_peer.control import ControlClient, ControlError
from netbird_peer.datagrams import UdpForward, served_datagrams
from netbird_peer.fetch import Request, Response, fetch
from netbird_peer.forwards import Forward
from netbird_peer.home import default_directory, locked, network_of, prepare
from netbird_peer.node import peer_node
from netbird_peer.options import Credentials, UpOptions
from netbird_peer.pipe import Forwarder, to_local, to_overlay
from netbird_peer.rendering import render
from netbird_peer.running import fail, log_to_stderr, run, until_signal
from netbird_peer.socks5 import SocksServer

if TYPE_CHECKING:
    from netbird_peer.sso import Prompt

HTTP_ERROR = 22
"""Exit code for a status of 400 or above, like curl's with `--fail`."""
LOOPBACK = "127.0.0.1"
DIAL_SECONDS = 30.0

app = typer.Typer(
    name="peer",
    help="Run an overlay peer in userspace: as a member of a NetBird network (`up`), or from a WireGuard file.",
    no_args_is_help=True,
    add_completion=False,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="WireGuard file. Without it, a running `up` is used.")
]
StateDirectory = Annotated[
    Path | None,
    typer.Option("--state", help="State directory of `up`, by default netbird-peer in $XDG_STATE_HOME."),
]
Resolve = Annotated[list[str] | None, typer.Option(help="HOST=ADDR: the overlay address of a name, with --config.")]


@app.command("up")
def up_command(
    management_url: Annotated[str, typer.Option(help="https:// or http:// address of management.")] = "",
    setup_key: Annotated[str, typer.Option(envvar="NB_SETUP_KEY", help="A setup key, for the first login.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a user's token of the identity provider, for the login.")
    ] = None,
    sso: Annotated[
        bool, typer.Option("--sso", help="Log in at the identity provider, by a code to confirm in any browser.")
    ] = False,
    issuer: Annotated[
        str, typer.Option(help="URL of the identity provider, with --client-id; by default management names both.")
    ] = "",
    client_id: Annotated[str, typer.Option(help="Our client at the identity provider.")] = "",
    hostname: Annotated[str, typer.Option(help="Our name in the network; by default the machine's.")] = "",
    state: StateDirectory = None,
    cacert: Annotated[Path | None, typer.Option(help="PEM file of certificate authorities to trust.")] = None,
    bind: Annotated[str, typer.Option(help="Address of the UDP socket; by default all.")] = "",
    dns_label: Annotated[list[str] | None, typer.Option(help="An extra name of this peer; repeatable.")] = None,
    relay_only: Annotated[bool, typer.Option("--relay-only", help="Reach peers through relays only.")] = False,
    loopback: Annotated[
        bool, typer.Option("--loopback", help="Use loopback addresses too, in a network on one machine.")
    ] = False,
) -> None:
    """Join a NetBird network, and stay until a signal. Prints `ready` when the network can be used.

    Later starts need no options: the state directory has the key and the network.
    """
    if sum((bool(setup_key), token_file is not None, sso)) > 1:
        fail("--setup-key, --token-file and --sso exclude each other")
    if bool(issuer) != bool(client_id) or (issuer and not sso):
        fail("--issuer and --client-id belong together, and to --sso")
    directory = state or default_directory()
    log_to_stderr()
    # gRPC's import takes half a second, which no other command needs, and httpx's a tenth.
    from netbird_peer.member import up
    from netbird_peer.sso import Client, Login

    try:
        token = token_file.read_text("utf-8").strip() if token_file is not None else ""
        roots = cacert.read_bytes() if cacert is not None else None
        prepare(directory)
        with locked(directory):
            network = network_of(directory, management_url=management_url, hostname=hostname)
            client = Client(issuer, client_id) if issuer else None
            login = Login(network.management_url, client, roots=roots, show=_print_prompt) if sso else None
            credentials = Credentials(setup_key, token, login.token if login is not None else None)
            options = UpOptions(cacert, bind, tuple(dns_label or ()), relay_only, loopback)

            async def main() -> None:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(up(directory, network, credentials, options, ready=_print_ready))
                    await until_signal()

            run(main())
    except (OverlayError, OSError, ValueError) as exc:
        fail(str(exc))


def _print_prompt(prompt: Prompt) -> None:
    """Standard output is for `ready`, so the words for the user go to standard error."""
    typer.echo(f"To log in, open {prompt.address} in any browser, and confirm the code {prompt.code}", err=True)
    if prompt.whole_address:
        typer.echo(f"With the code filled in: {prompt.whole_address}", err=True)


def _print_ready(addresses: Sequence[str]) -> None:
    print(f"ready on {', '.join(addresses)}", flush=True)


@app.command("status")
def status_command(
    state: StateDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the peers of a running `up`: paths, last handshakes, bytes and rates."""
    reply = run(ControlClient(state or default_directory()).ask({"do": "status"})) or {}
    for line in [json.dumps(reply)] if as_json else render(reply):
        typer.echo(line)


@app.command("down")
def down_command(state: StateDirectory = None) -> None:
    """End a running `up`."""
    run(ControlClient(state or default_directory()).ask({"do": "down"}))


@app.command()
def get(
    url: Annotated[str, typer.Argument(help="http:// or https:// address of a service.")],
    config: ConfigFile = None,
    state: StateDirectory = None,
    resolve: Resolve = None,
    cacert: Annotated[Path | None, typer.Option(help="PEM file of certificate authorities to trust.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="A request header.")] = None,
    include: Annotated[bool, typer.Option("--include", "-i", help="Print the answer's head too.")] = False,
    request: Annotated[str, typer.Option("--request", "-X", help="The method.")] = "",
    data: Annotated[str | None, typer.Option("--data", "-d", help="Body, or @FILE; makes it a POST.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Maximum time in seconds.")] = DIAL_SECONDS,
) -> None:
    """Fetch a page through the tunnel. Exit code 22 for a status of 400 or above.

    If a WireGuard file has exactly one [Peer] with one /32, every name without --resolve leads to that peer.
    """
    settings = _read(config)
    try:
        body = None if data is None else Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        outgoing = Request.of(url, method=request, headers=header or (), body=body)
        tls = ssl.create_default_context(cafile=cacert) if outgoing.secure else None
    except (ValueError, OSError) as exc:
        fail(str(exc))

    def show_head(response: Response) -> None:
        if include:
            lines = [f"HTTP/1.1 {response.status} {response.reason}"]
            lines += [f"{name}: {value}" for name, value in response.headers]
            show_body("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    def show_body(chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    async def main() -> int:
        async with overlay(settings, state, resolve or ()) as ways:
            response = await fetch(ways.dial, outgoing, tls=tls, timeout=timeout, on_head=show_head, on_body=show_body)
            return response.status

    if (run(main()) or 0) >= 400:
        raise typer.Exit(HTTP_ERROR)


@app.command("forward")
def forward_command(
    forward: Annotated[
        list[str], typer.Argument(help="[udp/]PORT=HOST:PORT: local port, and overlay address or name.")
    ],
    config: ConfigFile = None,
    state: StateDirectory = None,
    resolve: Resolve = None,
) -> None:
    """Listen on ports of 127.0.0.1 and carry streams, or datagrams, to servers on the overlay, until a signal.

    Prints `ready` with the ports; port 0 picks a free one.
    """
    settings, forwards = _read(config), _forwards(forward, local=True)

    async def main() -> None:
        async with overlay(settings, state, resolve or ()) as ways, asyncio.TaskGroup() as tasks:
            listening = [await _listen(tasks, ways, each) for each in forwards]
            print(f"ready on {LOOPBACK}: {', '.join(listening)}", flush=True)
            await until_signal()

    run(main())


async def _listen(tasks: asyncio.TaskGroup, ways: Overlay, forward: Forward) -> str:
    """Listen on a local port, and return the forward with the port that is bound."""
    loop = asyncio.get_running_loop()
    target = f"{forward.host}:{forward.target}"
    if forward.udp:
        protocol = UdpForward(tasks, ways.datagrams, forward.host, forward.target, timeout=DIAL_SECONDS)
        transport, _ = await loop.create_datagram_endpoint(lambda: protocol, (LOOPBACK, forward.port))
        return f"udp/{transport.get_extra_info('sockname')[1]}={target}"
    connect = to_overlay(ways.dial, forward.host, forward.target, timeout=DIAL_SECONDS)
    server = await loop.create_server(Forwarder(tasks, connect), LOOPBACK, forward.port)
    return f"{server.sockets[0].getsockname()[1]}={target}"


@app.command()
def socks(
    listen: Annotated[str, typer.Option(help="Loopback address to listen on, HOST:PORT.")] = f"{LOOPBACK}:1080",
    config: ConfigFile = None,
    state: StateDirectory = None,
    resolve: Resolve = None,
) -> None:
    """Serve SOCKS5 on loopback: applications reach the overlay's addresses and names through it, until a signal.

    CONNECT and UDP ASSOCIATE, without authentication: every user of this machine can use it.
    """
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        if not colon or not ip_address(host).is_loopback:
            raise ValueError(f"{listen!r} is not a loopback address and a port, such as {LOOPBACK}:1080")
        number = int(port)
    except ValueError as exc:
        fail(str(exc))
    settings = _read(config)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with overlay(settings, state, resolve or ()) as ways, asyncio.TaskGroup() as tasks:
            serving = SocksServer(tasks, ways.dial, timeout=DIAL_SECONDS, datagrams=ways.datagrams)
            server = await loop.create_server(serving, host, number)
            print(f"ready on {host}:{server.sockets[0].getsockname()[1]}", flush=True)
            await until_signal()

    run(main())


@app.command()
def serve(
    forward: Annotated[list[str], typer.Argument(help="[udp/]PORT=HOST:PORT: overlay port, and local server.")],
    config: ConfigFile = None,
    state: StateDirectory = None,
) -> None:
    """Offer local servers to peers. Prints `ready` when it listens, and runs until a signal.

    With a WireGuard file, the file's peers may connect; in a NetBird network, those that its policies admit.
    """
    settings, forwards = _read(config), _forwards(forward)

    async def by_file(config: WireGuardConfig) -> None:
        async with peer_node(config) as driver, asyncio.TaskGroup() as tasks:
            _serve(driver, config, forwards, tasks)
            addresses = ", ".join(str(address.ip) for address in config.addresses)
            print(f"ready on {addresses}: {', '.join(forward)}", flush=True)
            await until_signal()

    async def by_member() -> None:
        client = ControlClient(state or default_directory())
        requested = [each.request for each in forwards]
        async with client.serving(requested) as (addresses, lost), asyncio.TaskGroup() as tasks:
            print(f"ready on {', '.join(addresses)}: {', '.join(forward)}", flush=True)
            tasks.create_task(until_signal())
            await lost.wait()
            raise ControlError("`up` has ended, or has joined its network anew")

    run(by_member() if settings is None else by_file(settings))


def _serve(driver: Driver, config: WireGuardConfig, forwards: Sequence[Forward], tasks: asyncio.TaskGroup) -> None:
    driver.engine.set_inbound(_rules(config, forwards))
    for each in forwards:
        if each.udp:
            protocol = served_datagrams(tasks, each.host, each.target)
            driver.datagram_endpoint(lambda protocol=protocol: protocol, port=each.port)  # type: ignore[misc]
        else:
            driver.listen(each.port, Forwarder(tasks, to_local(each.host, each.target)))


def _read(path: Path | None) -> WireGuardConfig | None:
    try:
        return None if path is None else read_config(path)
    except ConfigError as exc:
        fail(str(exc))


def _forwards(texts: Sequence[str], *, local: bool = False) -> list[Forward]:
    try:
        return [Forward.parse(text, local=local) for text in texts]
    except ValueError as exc:
        fail(str(exc))


def _rules(config: WireGuardConfig, forwards: Sequence[Forward]) -> list[Rule]:
    """Return rules that allow the file's peers to reach these ports only."""
    sources = [str(network) for peer in config.peers for network in peer.allowed_ips]
    ports = [(UDP_NUMBER if each.udp else TCP_NUMBER, each.port) for each in forwards]
    return [(source, protocol, port, port) for source in sources for protocol, port in ports]


def main() -> None:
    """The entry point of `netbird-peer`."""
    app(prog_name="netbird-peer")
