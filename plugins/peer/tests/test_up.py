"""`netbird-peer up` as a process, in the network of a scripted management, with another node as its peer."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from netbird_overlay.engine import Endpoint
from netbird_overlay.keys import TunnelState
from netbird_overlay.members import Member
from netbird_overlay.membership.testing import FakeManagement
from netbird_overlay.membership.testing import serving as serving_management
from netbird_overlay.node import Node
from netbird_overlay.testing import LOOPBACK, Recorder, loopback_node
from netbird_wire.envelope import format_key
from netbird_wire.management_pb2 import (
    ACCEPT,
    IN,
    TCP,
    CustomZone,
    DNSConfig,
    FirewallRule,
    RemotePeerConfig,
    SimpleRecord,
)
from plugins.peer.tests.fake_provider import FakeProvider, serving_provider

pytestmark = pytest.mark.timeout(60)

US, ALICE = "100.64.0.1", "100.64.0.5"
KEY = "A2C8E62B-38F5-4553-B31E-DD66C696CEBB"
COMMAND = "from netbird_peer.peer_command import main; main()"
SECONDS = 30


@dataclass
class Lab:
    """A management, a node `alice`, and the state directory of the peer under test."""

    management: FakeManagement
    alice: Node
    state: Path

    async def start(self, *arguments: str, state: bool = True) -> Process:
        where = ("--state", str(self.state)) if state else ()
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMAND, *arguments, *where, stdout=PIPE, stderr=PIPE,
            env={"NO_COLOR": "1", "COLUMNS": "200", "HOME": str(self.state.parent)},
        )  # fmt: skip

    async def run(self, *arguments: str) -> tuple[int | None, str, str]:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        return process.returncode, out.decode(), err.decode()

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[tuple[Process, str]]:
        """A command that runs until a signal, and its first line."""
        process = await self.start(*arguments)
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
            if not line:
                _, err = await process.communicate()
                raise AssertionError(err.decode())
            yield process, line.decode().strip()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()

    @asynccontextmanager
    async def up(self, *arguments: str) -> AsyncIterator[Process]:
        """`up`, joined, with alice in its map and in reach."""
        url = f"http://{self.management.target}"
        async with self.running("up", "--management-url", url, "--hostname", "laptop", *arguments) as (process, line):
            assert line == f"ready on {US}"
            state = TunnelState.load(self.state)
            assert state.udp_port is not None
            introduce_to(self.alice, state)
            await asyncio.wait_for(self.alice.handshaken(state.public_key, ask=True), SECONDS)
            yield process


def introduce_to(node: Node, state: TunnelState) -> None:
    assert state.udp_port is not None
    node.set_members(
        [Member(state.public_key, (US,), "laptop")], {state.public_key: Endpoint(LOOPBACK, state.udp_port)}
    )


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    management = FakeManagement()
    management.setup_keys.add(KEY)
    management.address = f"{US}/16"
    async with loopback_node(ALICE) as alice, serving_management(management):
        alice.driver.engine.set_inbound([("0.0.0.0/0", 6, 0, 65535), ("0.0.0.0/0", 17, 0, 65535)])
        management.set_map(
            peers=[
                RemotePeerConfig(wgPubKey=format_key(alice.public_key), allowedIps=[f"{ALICE}/32"], fqdn="alice.nb")
            ],
            rules=[FirewallRule(PeerIP=ALICE, Direction=IN, Action=ACCEPT, Protocol=TCP)],
            dns=DNSConfig(
                ServiceEnable=True,
                CustomZones=[
                    CustomZone(
                        Domain="nb", Records=[SimpleRecord(Name="wiki.nb.", Type=1, Class="IN", TTL=60, RData=ALICE)]
                    )
                ],
            ),
        )
        yield Lab(management, alice, tmp_path / "state")


class Page(Recorder):
    """Answers any request with its first line."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        line = data.partition(b"\r\n")[0]
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), line))


async def test_a_setup_key_joins_once_and_the_state_directory_suffices_later(lab: Lab) -> None:
    """The key pair stays; the second start sends no setup key and needs no options."""
    async with lab.up("--setup-key", KEY):
        pass
    joined = lab.management.logins[-1]
    assert (joined.setupKey, joined.meta.hostname) == (KEY, "laptop")
    keys = set(lab.management.members)

    async with lab.running("up") as (_, line):
        assert line == f"ready on {US}"

    assert lab.management.logins[-1].setupKey == ""
    assert set(lab.management.members) == keys
    assert lab.state.stat().st_mode & 0o777 == 0o700


async def test_get_reaches_addresses_and_names_through_up(lab: Lab) -> None:
    """Names are those of the network's DNS; failures are sentences."""
    lab.alice.driver.listen(80, Page)
    async with lab.up("--setup-key", KEY):
        assert await lab.run("get", f"http://{ALICE}/a") == (0, "GET /a HTTP/1.1", "")
        assert await lab.run("get", "http://wiki.nb/b") == (0, "GET /b HTTP/1.1", "")
        code, _, err = await lab.run("get", f"http://{ALICE}:81/")
        assert (code, err) == (1, f"error: dial {ALICE}:81 through the tunnel: refused\n")
        code, _, err = await lab.run("get", "http://nowhere.nb/")
        assert code == 1
        assert err.startswith("error: ")


async def test_forward_and_socks_carry_streams_through_up(lab: Lab) -> None:
    lab.alice.driver.listen(80, Page)
    async with lab.up("--setup-key", KEY):
        async with lab.running("forward", "0=wiki.nb:80") as (_, line):
            port = int(line.removeprefix("ready on 127.0.0.1: ").partition("=")[0])
            assert await _request(port, b"") == b"GET / HTTP/1.1"
        async with lab.running("socks", "--listen", "127.0.0.1:0") as (_, line):
            port = int(line.rpartition(":")[2])
            assert await _request(port, b"\x05\x01\x00" + b"\x05\x01\x00\x03\x07wiki.nb\x00\x50") == b"GET / HTTP/1.1"
            refused = await _exchange(port, b"\x05\x01\x00" + b"\x05\x01\x00\x03\x07wiki.nb\x00\x51")
            assert refused[2:4] == b"\x05\x05"


async def test_forward_carries_datagrams_through_up(lab: Lab) -> None:
    lab.alice.driver.datagram_endpoint(Echo, port=53)
    async with lab.up("--setup-key", KEY), lab.running("forward", "udp/0=wiki.nb:53") as (_, line):
        port = int(line.removeprefix("ready on 127.0.0.1: udp/").partition("=")[0])
        client = Asking()
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: client, remote_addr=("127.0.0.1", port))
        for question in (b"one", b"two", b"x" * 1200):
            assert await client.ask(question) == b"answer to " + question
        client.transport.close()


class Echo(asyncio.DatagramProtocol):
    """A server on the overlay."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(b"answer to " + data, addr)


class Asking(asyncio.DatagramProtocol):
    """A local client."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answers.put_nowait(data)

    async def ask(self, question: bytes) -> bytes:
        self.transport.sendto(question)
        return await asyncio.wait_for(self.answers.get(), SECONDS)


async def test_serve_offers_local_servers_to_peers_that_the_map_admits(lab: Lab) -> None:
    local = await asyncio.start_server(_upper, LOOPBACK, 0)
    port = local.sockets[0].getsockname()[1]
    async with local, lab.up("--setup-key", KEY), lab.running("serve", f"8080={LOOPBACK}:{port}") as (_, line):
        assert line == f"ready on {US}: 8080={LOOPBACK}:{port}"
        _, peer = await lab.alice.dial(lambda: Recorder(keep_open=True), US, 8080, timeout=SECONDS)
        assert isinstance(peer, Recorder)
        peer.transport.write(b"hello")
        peer.transport.write_eof()
        assert await peer.lost is None
        assert bytes(peer.received) == b"HELLO"


async def test_status_shows_peers_and_down_ends(lab: Lab) -> None:
    """Path, handshake, bytes and, at the second look, rates."""
    async with lab.up("--setup-key", KEY) as process:
        code, out, _ = await lab.run("status", "--json")
        status = json.loads(out)
        (peer,) = status["peers"]
        assert code == 0
        assert (status["hostname"], status["addresses"], status["signal_connected"]) == ("laptop", [US], False)
        assert (peer["name"], peer["addresses"], peer["path"]) == ("alice.nb", [ALICE], "udp")
        assert peer["endpoint"] == f"{LOOPBACK}:{lab.alice.driver.local_port}"
        assert peer["handshake"] >= 0
        assert peer["received"] > 0
        _, out, _ = await lab.run("status")
        assert "alice.nb" in out
        assert "udp 127.0.0.1:" in out
        assert (await lab.run("down"))[0] == 0
        assert await asyncio.wait_for(process.wait(), SECONDS) == 0
    code, _, err = await lab.run("status")
    assert (code, "no `netbird-peer up` runs" in err) == (1, True)


async def test_two_ups_do_not_share_a_key(lab: Lab) -> None:
    """Two processes with one key would replace each other at every server."""
    async with lab.up("--setup-key", KEY):
        code, _, err = await lab.run("up")
        assert (code, err) == (1, f"error: another `netbird-peer up` uses {lab.state}\n")


async def test_a_moved_address_makes_the_node_anew(lab: Lab) -> None:
    """`up` goes on with its new address, and commands use the new node."""
    async with lab.up("--setup-key", KEY) as process:
        lab.management.address = "100.64.7.7/16"
        lab.management.set_map()
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), SECONDS) == b"ready on 100.64.7.7\n"
        _, out, _ = await lab.run("status", "--json")
        assert json.loads(out)["addresses"] == ["100.64.7.7"]


async def test_refusals_are_sentences_that_name_the_remedy(lab: Lab) -> None:
    url = f"http://{lab.management.target}"
    for arguments, why in (
        (("up",), "--management-url"),
        (("up", "--management-url", "ftp://x"), "http:// or https://"),
        (("up", "--management-url", url), "--setup-key"),
        (("up", "--management-url", url, "--setup-key", "wrong"), "setup key is invalid"),
        (("up", "--management-url", url, "--sso"), "name the provider by --issuer and --client-id"),
        (("up", "--management-url", url, "--sso", "--setup-key", KEY), "exclude each other"),
        (("up", "--management-url", url, "--sso", "--issuer", "https://login.example"), "belong together"),
        (("up", "--management-url", url, "--issuer", "https://login.example", "--client-id", "a"), "to --sso"),
        (("up", "--management-url", url, "--cacert", "/nowhere.pem"), "/nowhere.pem"),
        (("up", "--token-file", "/nowhere.token"), "/nowhere.token"),
        (("forward", "80"), "PORT=HOST:PORT"),
        (("socks", "--listen", "0.0.0.0:1080"), "loopback"),
        (("serve", "80=127.0.0.1:80"), "no `netbird-peer up` runs"),
        (("serve", "udp/0=127.0.0.1:53"), "PORT=HOST:PORT"),
    ):
        code, _, err = await lab.run(*arguments)
        assert (code, why in err, err.count("\n")) == (1, True, 1), err


async def test_a_peer_that_is_removed_ends_with_a_sentence(lab: Lab) -> None:
    async with lab.up("--setup-key", KEY) as process:
        lab.management.forget(format_key(TunnelState.load(lab.state).public_key))
        _, err = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 1
        assert "does not know this peer (any more)" in err.decode().splitlines()[-1]


async def test_a_token_file_logs_in(lab: Lab, tmp_path: Path) -> None:
    token = secrets.token_urlsafe(16)
    lab.management.tokens.add(token)
    (tmp_path / "token").write_text(token + "\n")
    async with lab.up("--token-file", str(tmp_path / "token")):
        assert lab.management.logins[-1].jwtToken == token


async def test_a_user_logs_in_at_the_provider(lab: Lab) -> None:
    """The words for the user are on standard error. The key alone suffices later, so nobody is asked then."""
    provider = FakeProvider(answers=[(200, {"id_token": "h.p.s"})], granted={"interval": 1})
    lab.management.tokens.add("h.p.s")
    async with serving_provider(provider):
        arguments = ("--sso", "--issuer", provider.url, "--client-id", "agents")
        async with lab.up(*arguments) as process:
            assert lab.management.logins[-1].jwtToken == "h.p.s"
            assert process.stderr is not None
            words = (await process.stderr.readline()).decode()
            assert words == f"To log in, open {provider.url}/page in any browser, and confirm the code WDJB-MJHT\n"
        async with lab.up(*arguments):
            assert lab.management.logins[-1].jwtToken == ""
    assert len(provider.forms) == 2


async def test_a_login_without_confirmation_ends_with_a_sentence(lab: Lab) -> None:
    provider = FakeProvider(answers=[(400, {"error": "access_denied"})], granted={"interval": 1})
    async with serving_provider(provider):
        code, _, err = await lab.run(
            "up", "--management-url", f"http://{lab.management.target}",
            "--sso", "--issuer", provider.url, "--client-id", "agents",
        )  # fmt: skip
    assert (code, err.splitlines()[-1]) == (1, "error: the login was refused at the identity provider")


async def _request(port: int, before: bytes) -> bytes:
    answer = await _exchange(port, before + b"GET / HTTP/1.1\r\n\r\n")
    return answer.partition(b"\r\n\r\n")[2]


async def _exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith(b"HTTP/1.1"):
        chunk = await asyncio.wait_for(reader.read(4096), SECONDS)
        if not chunk:
            break
        answer += chunk
    writer.close()
    return answer


async def _upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()
