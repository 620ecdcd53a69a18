"""The port itself: TLS, and what cannot be served."""

import socket
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme

from netbird_host.settings import SettingsError
from netbird_management.grpc.server import Timing, serve_grpc
from netbird_management.operations.proxies import clusters_of
from netbird_management.plugins.hooks import load_hooks
from netbird_management.server import ManagementServer
from netbird_management.settings import Listener, ManagementSettings
from netbird_proxy.testing.faults import TcpRelay
from netbird_wire.management_pb2 import Empty
from netbird_wire.management_pb2_grpc import ManagementServiceStub
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import FakeProxy, eventually, lab_for


@pytest.fixture
def host(home: Home, tmp_path: Path) -> ManagementServer:
    return ManagementServer(ManagementSettings(state_directory=tmp_path), load_hooks(), home.state)


async def test_tls_by_certificate_files(host: ManagementServer, tmp_path: Path) -> None:
    """With a certificate the port speaks TLS and nothing else, and the signal address says so."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    leaf.private_key_pem.write_to_path(str(key))
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    listener = Listener(listen="127.0.0.1:0", certificate=chain, key=key)
    roots = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with serve_grpc(host, listener, grace=1) as port:
        async with grpc.aio.secure_channel(f"localhost:{port}", roots) as channel:
            assert (await ManagementServiceStub(channel).GetServerKey(Empty(), timeout=5)).key
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ManagementServiceStub(channel).GetServerKey(Empty(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_cannot_be_served_is_an_error(host: ManagementServer, tmp_path: Path) -> None:
    """A port that is taken and a certificate that is not there stop the start."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="already in use"):
        async with serve_grpc(host, Listener(listen=f"127.0.0.1:{taken.getsockname()[1]}"), grace=1):
            pass
    missing = Listener(listen="127.0.0.1:0", certificate=tmp_path / "no.pem", key=tmp_path / "no.key")
    with pytest.raises(SettingsError, match=r"no\.pem"):
        async with serve_grpc(host, missing, grace=1):
            pass


async def test_a_proxy_that_says_nothing_is_gone(home: Home, tmp_path: Path) -> None:
    """Its connection stands and nothing comes: asked for a sign of life it gives none, and is disconnected."""
    timing = Timing(silence=0.2, patience=2.0)  # more than this process, which is all three of them, may be busy for
    async with (
        lab_for(home, tmp_path, timing=timing) as lab,
        TcpRelay("127.0.0.1", lab.port).running() as relay,
        grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel,
    ):
        await FakeProxy(channel, lab.token, proxy_id="quiet").connect()

        async def online() -> int:
            [cluster] = await clusters_of(home.state, home.account_id)
            return cluster.connected_proxies

        async def reads() -> int:
            return relay.reads

        assert await online() == 2  # with the one that every home has
        before = relay.reads
        await eventually(reads, lambda found: found > before + 8)  # signs of life, and nothing else
        relay.apply("freeze")
        await eventually(online, lambda found: found == 1)
        relay.heal()
