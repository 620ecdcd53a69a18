"""The program as operators run it: settings, first start, serving, stopping."""

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
import trustme
from typer.testing import CliRunner

from netbird_management.cli import app
from netbird_wire.proxy_service_pb2 import SyncMappingsInit, SyncMappingsRequest, SyncMappingsResponse
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub

TOML = """
state_directory = "{state}"
[rest]
listen = "127.0.0.1:0"
{tls}
[grpc]
listen = "127.0.0.1:0"
"""
PROGRAM = [sys.executable, "-c", "from netbird_management.cli import main; main()"]


def invoke(*arguments: str, config: Path) -> tuple[int, str, str]:
    """The command line in this process: exit code, output, errors."""
    result = CliRunner().invoke(app, [*arguments, "--config", str(config)])
    return result.exit_code, result.stdout, result.stderr


async def program(*arguments: str, config: Path) -> tuple[int, str, str]:
    """The same beside a running loop."""
    return await asyncio.to_thread(invoke, *arguments, config=config)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the processes started here: they share compiled files, which is most of what a start costs."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled"))}


@asynccontextmanager
async def running(
    config: Path, environment: dict[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """The host until it is ready, with what it printed: `rest`, `grpc`, and the setup secret if there is one."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        "run",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdout is not None
    told: dict[str, str] = {}
    try:
        async with asyncio.timeout(50):
            while "rest" not in told:
                line = (await process.stdout.readline()).decode()
                assert line, "it ended before it was ready"
                if line.startswith("setup secret: "):
                    told["secret"] = line.removeprefix("setup secret: ").strip()
                else:
                    told |= dict(part.split("=", 1) for part in line.split()[1:])
        yield process, told
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "management.toml"
    path.write_text(
        f'state_directory = "{tmp_path / "state"}"\n[rest]\nlisten = "127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:0"\n'
    )
    return path


async def _stopped(process: asyncio.subprocess.Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), 20)


async def test_from_nothing_to_a_connected_proxy(config: Path, environment: dict[str, str]) -> None:
    """init, run, a proxy's stream with the token that init printed, its cluster over REST, a clean end by SIGTERM."""
    code, out, _ = await program("init", "--email", "a@b.test", "--proxy-token", "p", "--json", config=config)
    assert code == 0
    made = json.loads(out)
    assert stat.S_IMODE((config.parent / "state").stat().st_mode) == 0o700
    headers = {"authorization": f"Token {made['personal_access_token']}"}
    async with running(config, environment) as (process, told):
        assert "secret" not in told
        async with httpx.AsyncClient(base_url=f"http://{told['rest']}", headers=headers) as client:
            assert (await client.get("/api/users/current")).json()["email"] == "a@b.test"
            metadata = (("authorization", f"Bearer {made['proxy_token']}"),)
            async with grpc.aio.insecure_channel(told["grpc"]) as channel:
                call = ProxyServiceStub(channel).SyncMappings(metadata=metadata, timeout=30)
                init = SyncMappingsInit(proxy_id="proxy", address="px.test")
                await call.write(SyncMappingsRequest(init=init))
                first = await call.read()
                assert isinstance(first, SyncMappingsResponse)
                assert first.initial_sync_complete
                [cluster] = (await client.get("/api/reverse-proxies/clusters")).json()
                assert (cluster["address"], cluster["online"]) == ("px.test", True)
                assert await _stopped(process) == 0


async def test_init_is_for_empty_stores(config: Path, environment: dict[str, str]) -> None:
    """A second init or run on one store changes nothing and fails; tokens come and go beside a running host."""
    assert (await program("init", "--email", "a@b.test", config=config))[0] == 0
    code, out, err = await program("init", "--email", "eve@b.test", config=config)
    assert (code, out) == (1, "")
    assert "account already" in err
    async with running(config, environment) as (process, _):
        code, _, err = await program("init", "--email", "eve@b.test", config=config)
        assert (code, "in use" in err) == (1, True), err
        second = await asyncio.create_subprocess_exec(
            *PROGRAM, "run", "--config", str(config), stderr=asyncio.subprocess.PIPE, env=environment
        )
        _, errors = await asyncio.wait_for(second.communicate(), 30)
        assert (second.returncode, b"in use" in errors) == (1, True), errors
        code, token, _ = await program("token", "create", "--name", "t", "--expires-in", "365d", config=config)
        assert code == 0
        assert token.startswith("nbx_")
        _, listed, _ = await program("token", "list", config=config)
        token_id = listed.split()[0]
        assert token.strip() not in listed
        assert (await program("token", "revoke", token_id, config=config))[0] == 0
        assert "revoked" in (await program("token", "list", config=config))[1]
        assert (await program("token", "revoke", "nothing", config=config))[0] == 1
        assert (await program("token", "create", "--name", "t", "--expires-in", "soon", config=config))[0] == 1
        assert await _stopped(process) == 0


async def test_the_first_start_prints_a_secret_for_setup(config: Path, environment: dict[str, str]) -> None:
    """With it the first user can be made from anywhere; without it, not even from the same machine."""
    body = {"email": "a@b.test", "name": "A"}
    async with (
        running(config, environment) as (process, told),
        httpx.AsyncClient(base_url=f"http://{told['rest']}") as client,
    ):
        assert (await client.post("/api/setup", json=body)).status_code == 403
        secret = {"x-netbird-setup-secret": told["secret"]}
        assert (await client.post("/api/setup", json=body, headers=secret)).status_code == 200
        response = await client.get("/api/instance")
        assert response.json() == {"setup_required": False}
        assert not {"server", "date"} & set(response.headers)
        assert await _stopped(process) == 0


async def test_rest_speaks_tls(config: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """With a certificate and its key."""
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(chain))
    certificate.private_key_pem.write_to_path(str(key))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = f'certificate = "{chain}"\nkey = "{key}"\n'
    config.write_text(TOML.format(state=tmp_path / "state", tls=tls))  # noqa: ASYNC240
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    async with running(config, environment) as (_, told), httpx.AsyncClient(verify=context) as client:
        assert (await client.get(f"https://{told['rest']}/api/instance")).status_code == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plugin = []\n", "did you mean plugins"),
        ('plugins = ["nothing"]\n', "is not installed"),
        ("access_log_days = 0\n", "access_log_days"),
        ('[rest]\nlisten = "8080"\n', "host:port"),
        ('[rest]\nlisten = "127.0.0.1:1"\nkey = "k.pem"\n', "set together"),
    ],
)
def test_wrong_settings_stop_the_start(config: Path, text: str, words: str) -> None:
    """With a sentence that says what to change, and nothing made."""
    config.write_text(text)
    for command in (["check"], ["run"], ["init", "--email", "a@b.test"], ["token", "list"]):
        code, _, errors = invoke(*command, config=config)
        assert (code, words in errors) == (2, True), errors
    assert not (config.parent / "state").exists()


def test_a_lost_key_stops_the_start(config: Path) -> None:
    """A database without its key is not opened with a new one, and a key others can read is not used."""
    assert invoke("init", "--email", "a@b.test", config=config)[0] == 0
    key = config.parent / "state" / "store.key"
    os.chmod(key, 0o640)
    code, _, errors = invoke("token", "list", config=config)
    assert (code, "chmod" in errors) == (1, True)
    key.rename(key.with_suffix(".away"))
    code, _, errors = invoke("token", "list", config=config)
    assert (code, "restore it" in errors) == (1, True)
    assert not key.exists()


async def test_a_stop_ends_streams_and_lets_calls_finish(config: Path, environment: dict[str, str]) -> None:
    """Streams are told at once, a call under way is answered, new ones are refused, the supervisor hears of it."""
    _, out, _ = await program("init", "--email", "a@b.test", "--proxy-token", "p", "--json", config=config)
    made = json.loads(out)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(config.parent / "notify"))
        ear.settimeout(20)
        notified = {**environment, "NOTIFY_SOCKET": ear.getsockname(), "WATCHDOG_USEC": "60000000"}
        async with running(config, notified) as (process, told):
            while not (await asyncio.to_thread(ear.recv, 1000)).startswith(b"READY=1\nSTATUS=rest 127.0.0.1:"):
                continue
            metadata = (("authorization", f"Bearer {made['proxy_token']}"),)
            async with grpc.aio.insecure_channel(told["grpc"]) as channel:
                call = ProxyServiceStub(channel).SyncMappings(metadata=metadata, timeout=30)
                await call.write(SyncMappingsRequest(init=SyncMappingsInit(proxy_id="proxy", address="px.test")))
                await call.read()
                reader, writer = await slow_post(told["rest"], made["personal_access_token"])
                process.send_signal(signal.SIGTERM)
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
                assert await call.details() == "management is stopping"
                await refused(told["rest"])
                writer.write(BODY[10:])
                assert (await reader.read()).startswith(b"HTTP/1.1 2")
                writer.close()
            assert await asyncio.wait_for(process.wait(), 20) == 0
            assert (await asyncio.to_thread(ear.recv, 1000)).startswith(b"STOPPING=1\n")


async def test_a_second_signal_cuts(config: Path, environment: dict[str, str]) -> None:
    """A call that does not end holds nothing up."""
    _, out, _ = await program("init", "--email", "a@b.test", "--json", config=config)
    patient = {**environment, "NETBIRD_MANAGEMENT_GRACE": "3600"}
    async with running(config, patient) as (process, told):
        reader, writer = await slow_post(told["rest"], json.loads(out)["personal_access_token"])
        process.send_signal(signal.SIGTERM)
        await refused(told["rest"])
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert not (await reader.read()).startswith(b"HTTP/1.1 2")
        writer.close()


BODY = json.dumps({"name": "engineering"}).encode()


async def slow_post(rest: str, token: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A call under way, whose body has not come yet."""
    host, _, port = rest.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /api/groups HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += b"authorization: Token %b\r\ncontent-length: %d\r\n" % (token.encode(), len(BODY))
    writer.write(head + b"expect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY[:10])
    return reader, writer


async def refused(rest: str) -> None:
    """Wait until nobody listens there."""
    host, _, port = rest.rpartition(":")
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)
