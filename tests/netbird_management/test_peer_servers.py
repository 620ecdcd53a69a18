"""The servers that peers are told about: settings, defaults, credentials and their renewal."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from netbird_management import Management, PeerServers, PluginInfo, RpcService, hookimpl
from netbird_management.grpc.peer_configuration import PeerConfiguration
from netbird_management.model.store_errors import VaultError
from netbird_management.peer_servers import TurnServer
from netbird_management.plugins.hooks import HookError, load_hooks
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener, read_settings
from netbird_management.store.directory import prepare_directory, relay_secret
from netbird_wire.management_pb2 import HostConfig, LoginResponse
from netbird_wire.relay_tokens import relay_token, turn_credentials
from netbird_wire.signalexchange_pb2_grpc import (
    SignalExchangeServicer,
    add_SignalExchangeServicer_to_server,
)
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import Lab, lab_for

GOLDEN = Path(__file__).parents[1] / "corpus" / "golden" / "wire.jsonl"
SECRET = "a secret of relays"


class Servers:
    """A plugin that runs a signal server on the gRPC port, and says what else it runs."""

    def __init__(self, servers: Any = None, *, signal: bool = True) -> None:
        self._servers, self._signal = servers, signal
        self.management: Management | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def rpc(self) -> list[RpcService]:
        return [RpcService(SignalExchangeServicer(), add_SignalExchangeServicer_to_server, open=True)] * self._signal

    @hookimpl
    def peer_servers(self, management: Management) -> Any:
        self.management = management
        return self._servers


def settings(directory: Path, **fields: Any) -> ManagementSettings:
    listeners = {"rest": RestListener(listen="127.0.0.1:0"), "grpc": Listener(listen="127.0.0.1:0")}
    return ManagementSettings(state_directory=directory, plugins=(), **{**listeners, **fields})


async def announced(directory: Path, plugin: Any = None, **fields: Any) -> tuple[PeerServers, ManagementServer]:
    """Return the configuration that a whole host with these settings announces."""
    seen: list[PeerServers] = []
    hooks = load_hooks([] if plugin is None else [("servers", plugin)])
    async with serve(settings(directory, **fields), hooks) as server:
        seen.append(server.announced.servers)
    return seen[0], server


async def test_nothing_is_announced_that_nobody_runs(empty_store: Path) -> None:
    """Without plugins and settings there is no server; agents still find the field of the signal server."""
    servers, server = await announced(empty_store)

    assert servers == PeerServers()
    message = server.announced.message()
    assert (message.HasField("signal"), message.signal.uri, message.HasField("relay")) == (True, "", False)
    assert server.announced.refresh_seconds() is None


async def test_own_servers_are_announced_as_peers_reach_them(empty_store: Path) -> None:
    """A signal service on the gRPC port, and what plugins say of their own ports, under the bound port or the public
    address."""
    plugin = Servers(PeerServers(relays=("rel://127.0.0.1:1",), stuns=("stun:127.0.0.1:2",)))
    servers, server = await announced(empty_store, plugin)

    assert servers.signal == f"http://127.0.0.1:{server.grpc_port}"
    assert (servers.relays, servers.stuns) == (("rel://127.0.0.1:1",), ("stun:127.0.0.1:2",))
    assert plugin.management is not None
    assert plugin.management.rest_url == f"http://127.0.0.1:{server.rest_port}"
    assert plugin.management.relay_secret == (empty_store / "relay.secret").read_text().strip()

    public = Listener(listen="127.0.0.1:0", public_url="https://mgmt.example")
    servers, _ = await announced(empty_store, Servers(), grpc=public)
    assert servers.signal == "https://mgmt.example:443"


async def test_settings_name_other_servers(empty_store: Path) -> None:
    """Each kind for itself, with a scheme of its own; plugins' servers of the same kind are not announced."""
    plugin = Servers(PeerServers(relays=("rel://127.0.0.1:1",), stuns=("stun:127.0.0.1:2",)))
    servers, _ = await announced(
        empty_store, plugin, signal="https://signal.example", relays=("rels://relay.example:444",)
    )

    assert servers == PeerServers("https://signal.example:443", ("rels://relay.example:444",), ("stun:127.0.0.1:2",))


async def test_a_signal_server_without_scheme_is_read_as_before(empty_store: Path) -> None:
    """`host:port`, as settings of earlier versions have it: TLS if the gRPC port has it."""
    servers, _ = await announced(empty_store, signal="signal.example:10000")

    assert servers.signal == "http://signal.example:10000"


async def test_a_server_on_loopback_is_a_warning(empty_store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Agents on other machines could not reach it; a public address is none."""
    await announced(empty_store, Servers())
    assert [record.msg for record in caplog.records if record.msg.startswith("peers.")] == ["peers.loopback_server"]
    caplog.clear()
    await announced(empty_store, Servers(), grpc=Listener(listen="127.0.0.1:0", public_url="https://a.example"))
    assert not [record for record in caplog.records if record.msg.startswith("peers.")]


@pytest.mark.parametrize(
    "answer",
    [
        PeerServers(signal="signal.example:1"),
        PeerServers(relays=("http://relay.example",)),
        PeerServers(relays=("rel://user@relay.example",)),
        PeerServers(stuns=("stun:host:99999",)),
        PeerServers(relays=(1,)),  # type: ignore[arg-type]
        "rel://relay.example",
    ],
)
async def test_a_plugin_that_answers_nonsense_stops_the_start(empty_store: Path, answer: Any) -> None:
    """Agents would dial it for ever."""
    with pytest.raises(BaseExceptionGroup) as stopped:
        await announced(empty_store, Servers(answer))
    refused, _ = stopped.value.split(HookError)
    assert refused is not None
    assert "peer_servers" in str(refused.exceptions)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signal", "ftp://signal.example"),
        ("signal", "signal.example"),
        ("signal", "https://signal.example/path"),
        ("relays", ["https://relay.example"]),
        ("relays", ["rels://relay.example:0"]),
        ("stuns", ["turn:stun.example:1"]),
        ("turns", [{"url": "turn:turn.example:1"}]),
        ("turns", [{"url": "turn:turn.example:1", "user": "u"}]),
        ("turns", [{"url": "turn:turn.example:1", "user": "u", "password": "p", "secret": "s"}]),
        ("turns", [{"url": "turn:turn.example:1?transport=tls", "secret": "s"}]),
        ("turns", [{"url": "https://turn.example:1", "secret": "s"}]),
        ("credentials_seconds", 5),
        ("rest", {"listen": "127.0.0.1:0", "public_url": "mgmt.example"}),
    ],
)
def test_a_server_that_agents_could_not_use_stops_the_start(name: str, value: Any) -> None:
    """The message names the setting."""
    with pytest.raises(ValidationError, match=name):
        ManagementSettings(**{name: value})


@pytest.mark.parametrize(
    ("listener", "hosts", "url"),
    [
        (Listener(listen="127.0.0.1:0"), (), "http://127.0.0.1:81"),
        (Listener(listen="192.0.2.1:81"), ("m.example",), "http://192.0.2.1:81"),
        (Listener(listen="[2001:db8::1]:81"), (), "http://[2001:db8::1]:81"),
        (Listener(listen="0.0.0.0:81"), ("m.example", "n.example"), "http://m.example:81"),
        (Listener(listen="[::]:81"), (), f"http://{socket.gethostname()}:81"),
        (Listener(listen="0.0.0.0:81", certificate=Path("c"), key=Path("k")), ("m.example",), "https://m.example:81"),
        (Listener(listen="0.0.0.0:81", public_url="https://m.example"), ("n.example",), "https://m.example:443"),
        (Listener(listen="0.0.0.0:81", public_url="http://m.example"), (), "http://m.example:80"),
    ],
)
def test_a_ports_url_is_where_peers_reach_it(listener: Listener, hosts: tuple[str, ...], url: str) -> None:
    """The operator's, else the bound address; for all interfaces, a host name of management's or the machine's."""
    assert listener.url(81, hosts) == url


def test_a_settings_file_names_every_kind(tmp_path: Path) -> None:
    """As an operator writes them; `check --show` shows no secret."""
    file = tmp_path / "management.toml"
    file.write_text(
        """
signal = "http://signal.example:10000"
relays = ["rels://relay.example"]
stuns = ["stun.example", "stun:other.example:3479"]
relay_secret = "shared.secret"

[[turns]]
url = "turn:turn.example:3478?transport=tcp"
secret = "of coturn"
"""
    )
    read, _ = read_settings(file, {})
    settings = read.value

    assert (settings.signal, settings.relays) == ("http://signal.example:10000", ("rels://relay.example:443",))
    assert settings.stuns == ("stun:stun.example:3478", "stun:other.example:3479")
    assert settings.turns == (TurnServer(url="turn:turn.example:3478?transport=tcp", secret="of coturn"),)  # type: ignore[arg-type]
    assert "of coturn" not in repr(settings)


def test_the_messages_credentials_are_those_of_the_secrets() -> None:
    """Relay and TURN for the same time; a fixed user stays as it is."""
    turns = (
        TurnServer(url="turn:a:1", secret="turn"),  # type: ignore[arg-type]
        TurnServer(url="turns:b:1", user="u", password="p"),  # type: ignore[arg-type]
    )
    servers = PeerServers("https://s:1", ("rel://r:1",), ("stun:t:1",))
    message = PeerConfiguration(servers, turns, SECRET, 3600, clock=lambda: 1_000_000).message()

    token, credentials = relay_token(SECRET, 1_003_600), turn_credentials("turn", 1_003_600)
    assert (message.relay.tokenPayload, message.relay.tokenSignature) == (token.payload, token.signature_text)
    assert list(message.relay.urls) == ["rel://r:1"]
    assert [(turn.hostConfig.uri, turn.user, turn.password) for turn in message.turns] == [
        ("turn:a:1", credentials.user, credentials.password),
        ("turns:b:1", "u", "p"),
    ]
    assert [turn.hostConfig.protocol for turn in message.turns] == [HostConfig.UDP, HostConfig.TCP]
    assert (message.signal.uri, message.signal.protocol) == ("s:1", HostConfig.HTTPS)


def test_a_configuration_is_netbirds_byte_for_byte() -> None:
    """An agent gets what NetBird's server sent for the same servers. The captured signature is kept: its secret is not
    known."""
    captured = next(
        line
        for line in map(json.loads, GOLDEN.read_text().splitlines())
        if line.get("inner_type", "").endswith("LoginResponse")
    )
    given = LoginResponse.FromString(base64.b64decode(captured["inner_base64"])).netbirdConfig
    expires = int(given.relay.tokenPayload)
    servers = PeerServers("http://10.99.0.1:8081", ("rel://10.99.0.1:8081",), ("stun:10.99.0.1:3478",))
    made = PeerConfiguration(servers, (), SECRET, 3600, clock=lambda: expires - 3600).message()
    made.relay.tokenSignature = given.relay.tokenSignature

    assert made.SerializeToString(deterministic=True) == given.SerializeToString(deterministic=True)


def test_credentials_are_renewed_at_three_quarters_of_their_life() -> None:
    """Earlier by up to a tenth, so that agents that came together do not return together; never without need."""
    servers = PeerServers(relays=("rel://r:1",))
    assert PeerConfiguration(servers, seconds=1000, uniform=lambda: 0.0).refresh_seconds() == 750
    assert PeerConfiguration(servers, seconds=1000, uniform=lambda: 1.0).refresh_seconds() == pytest.approx(675)
    assert PeerConfiguration(PeerServers("http://s:1"), seconds=1000).refresh_seconds() is None
    fixed = TurnServer(url="turn:a:1", user="u", password="p")  # type: ignore[arg-type]
    expiring = TurnServer(url="turn:a:1", secret="s")  # type: ignore[arg-type]
    assert PeerConfiguration(turns=(fixed,), seconds=1000).refresh_seconds() is None
    assert PeerConfiguration(turns=(fixed, expiring), seconds=1000).refresh_seconds() is not None


@pytest.fixture
def renewing() -> PeerConfiguration:
    """Credentials whose life is so short that a stream renews them at once."""
    moments = iter(range(1_000_000, 2_000_000))
    servers = PeerServers("http://s:1", ("rel://r:1",), ("stun:t:1",))
    return PeerConfiguration(servers, (), SECRET, 0.05, clock=lambda: next(moments))


async def test_a_stream_renews_credentials_without_a_map(
    home: Home, tmp_path: Path, renewing: PeerConfiguration
) -> None:
    """The message has the whole configuration, its relay included, a new token, and nothing else."""
    async with lab_for(home, tmp_path, announce=lambda _port, _services: renewing) as lab:
        node, first = await _joined(lab)
        later = await node.next()

    assert not later.HasField("NetworkMap")
    assert not later.HasField("sessionExpiresAt")
    assert list(later.netbirdConfig.relay.urls) == list(first.netbirdConfig.relay.urls) == ["rel://r:1"]
    assert later.netbirdConfig.relay.tokenPayload > first.netbirdConfig.relay.tokenPayload
    assert (later.netbirdConfig.signal, later.netbirdConfig.stuns) == (
        first.netbirdConfig.signal,
        first.netbirdConfig.stuns,
    )


async def _joined(lab: Lab) -> tuple[Any, Any]:
    node = lab.peer()
    await lab.stock_peer("laptop", key=node.key)
    await node.login()
    return node, await node.sync()


def test_the_secret_is_made_once_for_this_user_only(tmp_path: Path) -> None:
    """A restart reads the same one."""
    prepare_directory(tmp_path / "state")
    secret = relay_secret(tmp_path / "state")

    assert relay_secret(tmp_path / "state") == secret
    assert len(secret) >= 32
    assert (tmp_path / "state/relay.secret").stat().st_mode & 0o777 == 0o600
    assert {file.name for file in (tmp_path / "state").iterdir()} == {"store.key", "relay.secret"}


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [("short", 0o600, "at least"), ("x" * 40, 0o644, "chmod 600"), (None, 0, "cannot read")],
)
def test_a_secret_that_is_none_stops_the_start(tmp_path: Path, text: str | None, mode: int, reason: str) -> None:
    """Too short, readable by others, or missing: the operator named the file, so none is made in its place."""
    file = tmp_path / "named.secret"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)

    with pytest.raises(VaultError, match=reason):
        relay_secret(tmp_path, file)
    assert text is not None or not file.exists()


def test_a_named_file_has_the_secret_of_other_relays(tmp_path: Path) -> None:
    """Its text without the line's end."""
    file = tmp_path / "named.secret"
    file.write_text("any-relay-secret\n")
    file.chmod(0o600)

    assert relay_secret(tmp_path, file) == "any-relay-secret"
