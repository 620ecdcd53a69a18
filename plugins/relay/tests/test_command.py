"""`netbird-relay run`: its arguments, its secret, its sockets; and the process itself."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner
from websockets.asyncio.client import connect

from netbird_relay import opening
from netbird_relay.command import app
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.thread import RelayThread
from netbird_wire.relay import Auth, AuthResponse, Close
from plugins.relay.tests.peers import SECRET, TOKEN, URL, Agent, listener


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "relay.secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return file


def test_the_secret_is_the_files_text(secret_file: Path) -> None:
    assert opening.read_secret(secret_file) == SECRET
    assert SECRET not in repr(Identity(SECRET, URL))


def test_a_secret_that_others_can_read_or_guess_is_refused(secret_file: Path, tmp_path: Path) -> None:
    secret_file.chmod(0o640)
    with pytest.raises(opening.CannotServe, match="chmod 600"):
        opening.read_secret(secret_file)
    secret_file.chmod(0o600)
    secret_file.write_text("short")
    with pytest.raises(opening.CannotServe, match="16 characters"):
        opening.read_secret(secret_file)
    with pytest.raises(opening.CannotServe, match="No such file"):
        opening.read_secret(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":0", ("", 0)), ("[::1]:3478", ("::1", 3478)), ("host:1", ("host", 1))],
)
def test_an_address_is_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    assert opening.host_and_port(text) == expected


@pytest.mark.parametrize("text", ["", "host", "80", "host:x", "host:70000", "a@host:1", "host:1/path", "[::1"])
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        opening.host_and_port(text)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_sockets_are_bound_and_a_port_in_use_is_an_error(kind: socket.SocketKind) -> None:
    with opening.bind("127.0.0.1:0", kind) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(opening.CannotServe, match=f"cannot listen on 127.0.0.1:{port}"):
            opening.bind(f"127.0.0.1:{port}", kind)
    opening.bind(":0", kind).close()
    with pytest.raises(opening.CannotServe, match="cannot listen"):
        opening.bind("192.0.2.1:0", kind)


def test_a_certificate_is_read_again_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    authority = trustme.CA()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def issue(name: str) -> None:
        certificate = authority.issue_cert(name)
        certificate.private_key_pem.write_to_path(key)
        certificate.cert_chain_pems[0].write_to_path(chain)

    issue("relay.example")
    loaded = opening.certificate(chain, key)
    assert loaded is not None
    first = loaded.context()
    assert loaded.context() is first
    chain.write_text("nonsense")
    assert loaded.context() is first
    chain.unlink()
    assert loaded.context() is first
    issue("a-longer-name.relay.example")
    second = loaded.context()
    assert second is not first
    assert loaded.context() is second

    chain.write_text("nonsense")
    with pytest.raises(opening.CannotServe, match="cannot use the certificate"):
        opening.certificate(chain, key)
    assert opening.certificate(None, None) is None
    with pytest.raises(ValueError, match="needs its key"):
        opening.certificate(chain, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--exposed-url", "http://relay.example"), "rel://"),
        (("--listen", "nowhere"), "host:port"),
        (("--certificate", "chain.pem"), "needs its key"),
        (("--stun", "x"), "host:port"),
        (("--secret-file", "/nowhere"), "No such file"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(
    secret_file: Path, arguments: tuple[str, str], message: str
) -> None:
    given = {"--listen": "127.0.0.1:0", "--exposed-url": URL, "--secret-file": str(secret_file)}
    given |= dict([arguments])
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", *(word for pair in given.items() for word in pair)])
    assert result.exit_code == 2
    assert message in result.output


# In a thread ----------------------------------------------------------------------------------------------------------


async def test_a_relay_in_a_thread_serves_beside_this_loop_and_says_goodbye() -> None:
    thread = RelayThread(Identity(SECRET, "rel://unknown"), Limits())
    sock = listener()
    with sock:
        async with asyncio.timeout(20):
            async with thread.running([sock]):
                thread.set_instance_url(URL)
                url = f"ws://127.0.0.1:{sock.getsockname()[1]}/relay"
                connection = await connect(url, proxy=None, compression=None)
                agent = Agent(connection, 1)
                await agent.send(Auth(agent.id, TOKEN))
                assert await agent.receive() == AuthResponse(URL)
            assert await agent.receive() == Close()
            await agent.closed()
    ours, theirs = socket.socketpair()
    with ours:
        thread.adopt(theirs, "", b"")
        assert theirs.fileno() == -1


async def test_a_socket_that_another_loop_accepted_is_served_by_the_threads() -> None:
    thread = RelayThread(Identity(SECRET, URL), Limits())
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    head = (
        b"GET /relay HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with ours:
        async with asyncio.timeout(20), thread.running():
            thread.adopt(theirs, "192.0.2.1", head)
            assert (await asyncio.get_running_loop().sock_recv(ours, 1000)).startswith(b"HTTP/1.1 101 ")


# As a process ---------------------------------------------------------------------------------------------------------

COMMAND = (sys.executable, "-c", "from netbird_relay.command import main; main()", "run")


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The command, and the line that it prints when it listens."""
    running = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert running.stdout is not None
        yield running, (await running.stdout.readline()).decode().strip()
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


@pytest.mark.live
async def test_the_process_serves_tls_and_stun_and_ends_in_order(secret_file: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    arguments = ("--listen", "127.0.0.1:0", "--exposed-url", "rels://relay.example", "--secret-file", str(secret_file))
    arguments += ("--certificate", str(chain), "--key", str(key), "--stun", "127.0.0.1:0")
    async with asyncio.timeout(30), process(*arguments) as (running, line):
        ready, where, stun = line.split()
        assert ready == "ready"
        connection = await connect(f"wss://{where}/relay", ssl=trusting, proxy=None, compression=None)
        agent = Agent(connection, 1)
        await agent.send(Auth(agent.id, TOKEN))
        assert await agent.receive() == AuthResponse("rels://relay.example")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect(("127.0.0.1", int(stun.rpartition(":")[2])))
            asking.send(bytes.fromhex("000100002112a442") + bytes(12))
            assert (await asyncio.get_running_loop().sock_recv(asking, 100))[:2] == b"\x01\x01"
        running.send_signal(signal.SIGTERM)
        assert await agent.receive() == Close()
        assert await running.wait() == 0
