"""A member of a NetBird network, from the login to the end: `netbird-peer up`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.driver import ProtocolFactory, open_socket
from netbird_overlay.keys import TunnelState
from netbird_overlay.membership.client import ManagementClient, open_channel
from netbird_overlay.membership.enrollment import enroll
from netbird_overlay.membership.errors import AddressesChanged, LoginExpired, ManagementFailure, NotRegistered
from netbird_overlay.membership.joined import Joined, NodeOptions, joined
from netbird_overlay.membership.meta import system_meta
from netbird_peer.control import ControlServer, control_socket
from netbird_peer.datagrams import OpenDatagrams
from netbird_peer.errors import ControlStop, JoinFailed
from netbird_peer.home import Network
from netbird_peer.options import Credentials, UpOptions
from netbird_peer.pipe import Dial
from netbird_peer.status import Rates, status_of
from netbird_wire.management_pb2 import LoginResponse

LOGIN_SECONDS: Final = 60.0
FIRST_MAP_SECONDS: Final = 30.0


class MemberView:
    """The joined node, for the control socket."""

    def __init__(self, network: Network, state: TunnelState, member: Joined) -> None:
        self._network = network
        self._state = state
        self._member = member
        self._rates = Rates()

    @property
    def dial(self) -> Dial:
        return self._member.node.dial

    @property
    def datagrams(self) -> OpenDatagrams:
        return self._member.node.datagrams

    @property
    def addresses(self) -> Sequence[str]:
        return self._member.node.addresses

    def listen(self, port: int, protocol_factory: ProtocolFactory) -> None:
        self._member.node.listen(port, protocol_factory)

    def listen_datagrams(self, port: int, protocol_factory: DatagramFactory) -> asyncio.DatagramTransport:
        return self._member.node.listen_datagrams(port, protocol_factory)[0]

    def unlisten(self, port: int) -> None:
        self._member.node.driver.unlisten(port)

    def status(self) -> dict[str, Any]:
        return status_of(self._network, self._member, self._rates)


async def up(
    directory: Path,
    network: Network,
    credentials: Credentials,
    options: UpOptions,
    *,
    ready: Callable[[Sequence[str]], None],
) -> None:
    """Join the network and stay a member until cancelled. Serves the control socket.

    Args:
        ready: called with our overlay addresses after each first map.

    Raises:
        StateUnusable, OSError: the directory, its socket or the UDP port cannot be used.
        JoinFailed: management refused us, or did not answer in time.
        TunnelBroken: the engine or its socket failed.
        ControlStop: another command asked to stop.
    All come as an exception group.
    """
    state = TunnelState.load(directory)
    async with asyncio.TaskGroup() as tasks:
        stop = asyncio.Event()
        control = ControlServer(tasks, stop.set)
        async with control_socket(directory, control):
            tasks.create_task(_stay_joined(network, state, credentials, options, control, ready))
            await stop.wait()
            raise ControlStop


async def _stay_joined(
    network: Network,
    state: TunnelState,
    credentials: Credentials,
    options: UpOptions,
    control: ControlServer,
    ready: Callable[[Sequence[str]], None],
) -> None:
    own_roots = options.roots.read_bytes() if options.roots is not None else None
    node_options = NodeOptions(
        ice=not options.relay_only, roots=own_roots, loopback=options.loopback, label=network.hostname
    )
    async with open_channel(network.management_url, roots=own_roots or _system_roots()) as channel:
        client = ManagementClient(channel, state.private_key, lambda files: system_meta(network.hostname, files=files))
        while True:
            login = await _log_in(client, credentials, options)
            sock = open_socket(options.bind, state.udp_port or 0)
            if state.udp_port is None:
                state.udp_port = int(sock.getsockname()[1])
                state.save()
            try:
                async with joined(state, sock, client, login, node_options) as member:
                    await _first_map(member)
                    control.attach(MemberView(network, state, member))
                    ready(member.node.addresses)
                    await asyncio.Event().wait()
            except* AddressesChanged:
                pass  # the node is made anew
            except* (NotRegistered, LoginExpired) as errors:
                raise _refusal(errors.exceptions[0]) from errors
            finally:
                control.attach(None)


async def _log_in(client: ManagementClient, credentials: Credentials, options: UpOptions) -> LoginResponse:
    """Log in by the key alone, and by the credentials where that does not suffice. Raises JoinFailed."""
    try:
        async with _answer_in_time():
            return await enroll(client, dns_labels=options.dns_labels)
    except (NotRegistered, LoginExpired) as error:
        if not credentials.setup_key and not credentials.token and credentials.login is None:
            raise _refusal(error) from error
    token = await credentials.login() if credentials.login is not None else credentials.token
    try:
        async with _answer_in_time():
            return await enroll(client, setup_key=credentials.setup_key, jwt=token, dns_labels=options.dns_labels)
    except (NotRegistered, LoginExpired) as error:
        raise JoinFailed(f"management refused the login: {error}") from error


@asynccontextmanager
async def _answer_in_time() -> AsyncIterator[None]:
    """Raises JoinFailed if management is silent, or refuses for another reason than a login that is missing."""
    try:
        async with asyncio.timeout(LOGIN_SECONDS):
            yield
    except TimeoutError as error:
        raise JoinFailed(f"management did not answer within {LOGIN_SECONDS:g} s") from error
    except (NotRegistered, LoginExpired):
        raise
    except ManagementFailure as error:
        raise JoinFailed(f"management refused the login: {error}") from error


async def _first_map(member: Joined) -> None:
    try:
        async with asyncio.timeout(FIRST_MAP_SECONDS):
            await member.membership.first.wait()
    except TimeoutError as error:
        why = member.membership.last_error or "management is silent"
        raise JoinFailed(f"no network map within {FIRST_MAP_SECONDS:g} s: {why}") from error


def _refusal(error: BaseException) -> JoinFailed:
    if isinstance(error, LoginExpired):
        return JoinFailed("the login of this peer has expired: log in again, by --sso or --token-file")
    return JoinFailed(
        "management does not know this peer (any more): join again, by --setup-key, --sso or --token-file"
    )


def _system_roots() -> bytes | None:
    """The system's certificate authorities, which gRPC does not use by itself."""
    system = ssl.get_default_verify_paths().cafile
    return Path(system).read_bytes() if system is not None else None
