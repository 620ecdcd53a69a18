"""`netbird-proxy peer` as a process of its own on loopback: `get` fetches pages, `serve` offers local servers."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import sys
from asyncio.sslproto import SSLProtocol
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from netbird_overlay.errors import Refused, TimedOut
from netbird_overlay.members import Member
from netbird_overlay.node import Node
from netbird_overlay.testing import (
    LOOPBACK,
    Recorder,
    allow_everything_in,
    loopback_node,
)
from netbird_wire.envelope import format_key, public_key

pytestmark = pytest.mark.timeout(60)

US, ALICE = "100.64.0.1", "100.64.0.5"
COMMAND = "from netbird_peer.peer_command import app; app(prog_name='netbird-peer')"


class Setting:
    """Our tunnel, and a WireGuard file for its only peer."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.key = secrets.token_bytes(32)
        self.file = directory / "alice.conf"
        self.file.write_text(
            f"[Interface]\nPrivateKey = {format_key(self.key)}\nAddress = {ALICE}/32\nMTU = 1280\n\n"
            f"[Peer]\nPublicKey = {format_key(node.public_key)}\nAllowedIPs = {US}/32\n"
            f"Endpoint = {LOOPBACK}:{node.driver.local_port}\nPersistentKeepalive = 25\n"
        )
        node.set_members([Member(public_key(self.key), (ALICE,), "alice")], {})
        allow_everything_in(node)

    async def run(self, *arguments: str) -> tuple[int, bytes, str]:
        process = await self.start(*arguments)
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out, err.decode()

    async def start(self, *arguments: str) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMAND, *arguments, stdout=PIPE, stderr=PIPE, env={"NO_COLOR": "1", "COLUMNS": "200"}
        )


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    async with loopback_node(US) as node:
        yield Setting(node, tmp_path)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An application that echoes the request; `/status/N` answers with that status."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    path = scope["raw_path"].decode()
    status = int(path.rpartition("/")[2]) if path.startswith("/status/") else 200
    headers = dict(scope["headers"])
    said = f"{scope['method']} {headers[b'host'].decode()} {path}?{scope['query_string'].decode()} ".encode()
    said += headers.get(b"x-test", b"-") + b" " + headers.get(b"content-type", b"-") + b" " + body + b"\n"
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-answer", b"yes")]})
    await send({"type": "http.response.body", "body": said})


def server() -> Callable[[], HttpToolsProtocol]:
    config = uvicorn.Config(
        app, loop="none", lifespan="off", proxy_headers=False, server_header=False, date_header=False, log_config=None
    )
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    return lambda: HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=loop)


async def test_get_sends_every_name_to_the_one_peer(setting: Setting) -> None:
    """A name that no resolver knows leads to the file's only peer."""
    setting.node.driver.listen(80, server())
    code, out, err = await setting.run("get", "http://wiki.example.com/a%2Fb?c=d", "--config", str(setting.file))
    assert (code, out, err) == (0, b"GET wiki.example.com /a%2Fb?c=d - - \n", "")


async def test_get_speaks_as_it_is_told(setting: Setting) -> None:
    """Method, headers, body, `--include` and `--resolve` take effect."""
    setting.node.driver.listen(8080, server())
    code, out, _ = await setting.run(
        "get", "http://wiki.example.com:8080/form", "-c", str(setting.file), "--resolve", f"WIKI.example.com={US}",
        "-H", "X-Test: hello", "-H", "Host: other.example.com", "-d", "a=b", "-i",
    )  # fmt: skip
    head, _, body = out.partition(b"\r\n\r\n")
    assert code == 0
    assert head.startswith(b"HTTP/1.1 200 OK\r\nx-answer: yes")
    assert body == b"POST other.example.com /form? hello application/x-www-form-urlencoded a=b\n"


@pytest.mark.parametrize("status", [400, 403, 503])
async def test_get_tells_an_error_by_its_exit_code(setting: Setting, status: int) -> None:
    """The exit code is 22 for a status of 400 or above, and the page is still printed."""
    setting.node.driver.listen(80, server())
    code, out, _ = await setting.run("get", f"http://wiki.example.com/status/{status}", "-c", str(setting.file))
    assert code == 22
    assert b"/status/" in out


async def test_get_over_tls(setting: Setting, tmp_path: Path) -> None:
    """https checks the certificate's name against the URL's, with the authority that was given and no other."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("wiki.example.com").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    make, loop = server(), asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # refused handshakes are said here too
    setting.node.driver.listen(443, lambda: SSLProtocol(loop, make(), context, None, server_side=True))
    trusted = ["-c", str(setting.file), "--cacert", str(tmp_path / "ca.pem")]

    code, out, err = await setting.run("get", "https://wiki.example.com/", *trusted)
    assert (code, out, err) == (0, b"GET wiki.example.com /? - - \n", "")
    code, out, err = await setting.run("get", "https://other.example.com/", *trusted)
    assert (code, out) == (1, b"")
    assert "other.example.com" in err
    code, out, err = await setting.run("get", "https://wiki.example.com/", "-c", str(setting.file))
    assert (code, out) == (1, b"")
    assert "certificate verify failed" in err


async def test_get_says_what_failed(setting: Setting) -> None:
    """Each failure prints one sentence and exits with 1."""
    config = ("-c", str(setting.file))
    code, _, err = await setting.run("get", "http://wiki.example.com/", *config)
    assert (code, err) == (1, f"error: dial {US}:80 through the tunnel: refused\n")
    setting.node.driver.engine.set_inbound([])
    code, _, err = await setting.run("get", "http://wiki.example.com/", *config, "--timeout", "0.5")
    assert code == 1
    assert "0.5 s" in err or "in time" in err
    code, _, err = await setting.run("get", "http://100.64.0.9/", *config)
    assert code == 1
    assert err.startswith("error: dial 100.64.0.9:80")
    code, _, err = await setting.run("get", "ftp://wiki.example.com/", *config)
    assert code == 1
    assert "http://" in err
    code, _, err = await setting.run("get", "http://wiki.example.com/", *config, "-H", "no header")
    assert code == 1
    code, _, err = await setting.run("get", "http://wiki.example.com/", "-c", "/nowhere.conf")
    assert code == 1
    assert "/nowhere.conf" in err
    setting.file.write_text(setting.file.read_text().replace("MTU", "MTÜ"))
    code, _, err = await setting.run("get", "http://wiki.example.com/", *config)
    assert code == 1
    assert f"{setting.file}:4: unknown key" in err


async def test_get_needs_to_know_where_a_name_is(setting: Setting) -> None:
    """If the file has more than one address, a name needs --resolve, and the message says so."""
    setting.file.write_text(setting.file.read_text().replace(f"{US}/32", f"{US}/32, 100.64.0.2/32"))
    code, _, err = await setting.run("get", "http://wiki.example.com/", "-c", str(setting.file))
    assert code == 1
    assert "--resolve wiki.example.com=ADDR" in err


@asynccontextmanager
async def serving(setting: Setting, port: int) -> AsyncIterator[Process]:
    """`peer serve`, ready."""
    process = await setting.start("serve", f"8080={LOOPBACK}:{port}", "-c", str(setting.file))
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line == f"ready on {ALICE}: 8080={LOOPBACK}:{port}\n".encode()
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_serve_offers_what_runs_beside_it(setting: Setting) -> None:
    """`serve` connects to its peer, carries streams both ways with half-close, and ends on a signal."""

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(data.upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    local = await asyncio.start_server(upper, LOOPBACK, 0)
    async with local:
        port = local.sockets[0].getsockname()[1]
        async with serving(setting, port) as process:
            await setting.node.handshaken(public_key(setting.key))
            _, client = await setting.node.dial(lambda: Recorder(keep_open=True), ALICE, 8080, timeout=10)
            assert isinstance(client, Recorder)
            data = b"a long story " * 200_000
            await client.write_slowly(data)
            client.transport.write_eof()
            assert await client.lost is None
            assert bytes(client.received) == data.upper()
            with pytest.raises((Refused, TimedOut)):
                await setting.node.dial(Recorder, ALICE, 8081, timeout=1)
            process.terminate()
            assert await process.wait() == 0


class Shouting(asyncio.DatagramProtocol):
    """A local server that answers in capitals."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data.upper(), addr)


class Asking(asyncio.DatagramProtocol):
    """A socket with its answers."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answers.put_nowait(data)


async def test_datagrams_reach_local_servers_and_socks_carries_them(setting: Setting, tmp_path: Path) -> None:
    """`serve udp/` with a file answers its peer, and a SOCKS client reaches a UDP port of that peer."""
    loop = asyncio.get_running_loop()
    local, _ = await loop.create_datagram_endpoint(Shouting, (LOOPBACK, 0))
    forward = f"udp/5300={LOOPBACK}:{local.get_extra_info('sockname')[1]}"
    async with ready(setting, "serve", forward) as line:
        assert line == f"ready on {ALICE}: {forward}"
        await setting.node.handshaken(public_key(setting.key))
        peer = Asking()
        await setting.node.datagrams(lambda: peer, ALICE, 5300, timeout=10)
        peer.transport.sendto(b"hello")
        assert await peer.answers.get() == b"HELLO"
        peer.transport.close()
    local.close()

    setting.node.listen_datagrams(53, Shouting)
    async with ready(setting, "socks", "--listen", f"{LOOPBACK}:0") as line:
        reader, writer = await asyncio.open_connection(LOOPBACK, int(line.rpartition(":")[2]))
        writer.write(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
        answer = await reader.readexactly(12)
        client = Asking()
        await loop.create_datagram_endpoint(lambda: client, remote_addr=(LOOPBACK, int.from_bytes(answer[-2:])))
        question = b"\x00\x00\x00\x03\x04wiki\x00\x35"
        client.transport.sendto(question + b"name?")
        assert await client.answers.get() == question + b"NAME?"
        client.transport.close()
        writer.close()


@asynccontextmanager
async def ready(setting: Setting, *arguments: str) -> AsyncIterator[str]:
    """A command that runs until a signal; its line when it is ready."""
    process = await setting.start(*arguments, "-c", str(setting.file))
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().rstrip()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_serve_resets_what_it_cannot_carry(setting: Setting) -> None:
    """Without a local server the stream is reset at once, and the command continues."""
    async with serving(setting, 1) as process:
        await setting.node.handshaken(public_key(setting.key))
        for _ in range(2):
            _, client = await setting.node.dial(Recorder, ALICE, 8080, timeout=10)
            assert isinstance(client, Recorder)
            assert isinstance(await client.lost, ConnectionResetError)
        assert process.returncode is None


async def test_serve_says_what_it_cannot_read(setting: Setting) -> None:
    """An invalid forward ends the command with a message that shows the expected form."""
    code, _, err = await setting.run("serve", "8080", "-c", str(setting.file))
    assert code == 1
    assert "PORT=HOST:PORT" in err


async def test_socks_and_forward_use_a_wireguard_file(setting: Setting) -> None:
    """Names lead to the file's only peer; streams are carried both ways."""
    setting.node.driver.listen(80, server())
    for command in (("socks", "--listen", f"{LOOPBACK}:0"), ("forward", "0=wiki:80")):
        process = await setting.start(*command, "-c", str(setting.file))
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            port = int(line.removeprefix("ready on 127.0.0.1:").strip().partition("=")[0])
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            if command[0] == "socks":
                writer.write(b"\x05\x01\x00\x05\x01\x00\x03\x04wiki\x00\x50")
                assert (await reader.readexactly(12))[3] == 0
            writer.write(b"GET /x HTTP/1.1\r\nHost: wiki\r\nConnection: close\r\n\r\n")
            assert b"GET wiki /x?" in await reader.read()
            writer.close()
        finally:
            process.terminate()
            await process.communicate()
