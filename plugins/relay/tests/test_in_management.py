"""The relay as a plugin of management: on the REST port, on its own, and in what management tells peers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.asyncio.client import connect

from netbird_management.plugins.hooks import load_hooks
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener
from netbird_relay.management import Options, Relay
from netbird_wire.relay import Auth, AuthResponse, Close, Transport
from netbird_wire.relay_tokens import RelayToken
from plugins.relay.tests.peers import Agent, key_id

LOCAL = "127.0.0.1:0"


@asynccontextmanager
async def management(
    directory: Path, options: Options | None = None, authority: trustme.CA | None = None, **rest: Any
) -> AsyncIterator[ManagementServer]:
    if authority is not None:
        leaf = authority.issue_cert("127.0.0.1")
        rest |= {"certificate": directory / "chain.pem", "key": directory / "key.pem"}
        leaf.private_key_pem.write_to_path(str(rest["key"]))
        leaf.cert_chain_pems[0].write_to_path(str(rest["certificate"]))
    settings = ManagementSettings(
        state_directory=directory / "state",
        rest=RestListener(listen=LOCAL, **rest),
        grpc=Listener(listen=LOCAL),
        grace=5.0,
    )
    options = Options() if options is None else options
    async with asyncio.timeout(40), serve(settings, load_hooks([("relay", Relay())]), options=[options]) as server:
        yield server


@asynccontextmanager
async def agents(
    server: ManagementServer, count: int = 2, authority: trustme.CA | None = None
) -> AsyncIterator[list[Agent]]:
    """Agents with the URL and the token that management sends."""
    config = server.announced.message().relay
    (url,) = config.urls
    tls = None
    if authority is not None:
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
    token = RelayToken.from_config(config.tokenPayload, config.tokenSignature)
    address = url.replace("rels://", "wss://").replace("rel://", "ws://")
    connected = []
    try:
        for number in range(count):
            connection = await connect(f"{address}/relay", ssl=tls, proxy=None, compression=None)
            connected.append(agent := Agent(connection, number))
            await agent.send(Auth(agent.id, token))
            assert await agent.receive() == AuthResponse(url)
        yield connected
    finally:
        for agent in connected:
            agent.connection.transport.abort()
            await agent.connection.wait_closed()


async def exchange(alice: Agent, bob: Agent) -> None:
    await alice.meet(bob)
    await bob.meet(alice)
    await alice.send(Transport(bob.id, bytes(1400)))
    assert await bob.datagram() == (alice.id, bytes(1400))


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("with_grpc", [False, True], ids=["rest", "rest and grpc"])
async def test_agents_meet_on_the_rest_port_with_managements_token(
    tmp_path: Path, with_tls: bool, with_grpc: bool
) -> None:
    authority = trustme.CA() if with_tls else None
    async with (
        management(tmp_path, authority=authority, grpc=with_grpc) as server,
        agents(server, authority=authority) as (alice, bob),
    ):
        await exchange(alice, bob)
        verify: Any = True
        if authority is not None:
            verify = ssl.create_default_context()
            authority.configure_trust(verify)
        async with httpx.AsyncClient(verify=verify) as client:
            answer = await client.get(f"{server.rest_url}/api/instance")
        assert answer.status_code == 200


async def test_the_relay_says_goodbye_when_management_stops(tmp_path: Path) -> None:
    async with management(tmp_path) as server:
        entered = agents(server, 1)
        (alice,) = await entered.__aenter__()
    assert await alice.receive() == Close()
    await entered.__aexit__(None, None, None)


async def test_a_listener_and_a_stun_server_of_its_own_are_announced(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = Options(listen=f"127.0.0.1:{port}", exposed_url=f"rel://127.0.0.1:{port}", stun=LOCAL)
    async with management(tmp_path, options) as server, agents(server) as (alice, bob):
        config = server.announced.message()
        assert list(config.relay.urls) == [f"rel://127.0.0.1:{port}"]
        (stun,) = config.stuns
        scheme, host, stun_port = stun.uri.split(":")
        assert (scheme, host) == ("stun", "127.0.0.1")
        await exchange(alice, bob)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect((host, int(stun_port)))
            asking.send(bytes.fromhex("000100002112a442") + bytes(12))
            assert (await asyncio.get_running_loop().sock_recv(asking, 100))[:2] == b"\x01\x01"


async def test_peers_of_both_ports_meet(tmp_path: Path) -> None:
    """A peer that knows the REST port only, and one that has the announced port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = Options(listen=f"127.0.0.1:{port}", exposed_url=f"rel://127.0.0.1:{port}")
    async with management(tmp_path, options) as server, agents(server, 1) as (alice,):
        config = server.announced.message().relay
        connection = await connect(f"ws://127.0.0.1:{server.rest_port}/relay", proxy=None, compression=None)
        bob = Agent(connection, 7)
        await bob.send(Auth(bob.id, RelayToken.from_config(config.tokenPayload, config.tokenSignature)))
        await bob.receive()
        await exchange(alice, bob)
        await connection.close()


async def test_a_port_in_use_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = Options(listen=f"127.0.0.1:{port}", exposed_url="rel://relay.example")
        with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="cannot listen"), flatten_subgroups=True):
            async with management(tmp_path, options):
                pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"listen": "nowhere"},
        {"listen": LOCAL},  # without exposed_url
        {"exposed_url": "https://relay.example"},
        {"certificate": "chain.pem"},
        {"certificate": "chain.pem", "key": "key.pem"},  # without listen
        {"stun": "x"},
        {"connections": 0},
        {"unknown": 1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Options.model_validate(wrong)


def test_the_plugin_is_found_by_its_name() -> None:
    assert [plugin.id for plugin in load_hooks(["relay"]).plugins] == ["relay"]
    assert key_id(1) != key_id(2)
