"""The account that the recorded calls were made in, and the proxy that was connected to it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from google.protobuf.json_format import ParseDict

from netbird_management.compute.network_map import NetworkMaps
from netbird_management.grpc.server import serve_grpc
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import IdentityProvider
from netbird_management.login.settings import OidcSettings
from netbird_management.login.sign_on import SignOn
from netbird_management.model.accounts import AccountSettings, PeerMeta, Policy, PolicyRule, Role
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, UserId
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.users import create_token
from netbird_management.plugins.hooks import load_hooks
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from netbird_management.server import ManagementServer
from netbird_management.settings import Listener, ManagementSettings
from netbird_management.store import network_rows as rows
from netbird_management.store.models import AccountRow, GroupPeerRow, GroupRow, PeerRow, UserRow
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import ProxyCapabilities
from tests.netbird_management.conftest import proved_domain
from tests.netbird_management.grpc.conftest import FakeProxy

HERE = Path(__file__).parent
CORPUS = HERE.parents[1] / "corpus" / "golden"
FIXTURE: dict[str, Any] = json.loads((HERE / "fixture.json").read_text())
ACCOUNT = AccountId(FIXTURE["account"]["id"])


@dataclass(frozen=True)
class Stage:
    """The recorded account behind REST and gRPC, with its proxy connected."""

    state: State
    rest: httpx.AsyncClient
    proxy: FakeProxy
    port: int
    ids: dict[str, str] = field(default_factory=dict)
    """Ours for theirs, of what was made anew."""


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _peer(given: dict[str, Any]) -> PeerRow:
    meta = PeerMeta(
        hostname=given.get("hostname", given["name"]),
        os=given.get("os", "proxy"),
        kernel_version=given.get("kernel_version", ""),
        netbird_version=given.get("version", ""),
    )
    return PeerRow(
        id=given["id"],
        account_id=ACCOUNT,
        key=given["key"],
        ip=given["ip"],
        ipv6=given["ipv6"],
        name=given["name"],
        dns_label=given["dns_label"],
        user_id=None,
        meta=asdict(meta),
        connected=given["connected"],
        connection_ip=given.get("connection_ip", ""),
        last_seen=_moment(given.get("last_seen")),
        last_login=_moment(given.get("last_login")),
        created_at=_moment(given.get("created_at")) or now(),
        proxy_cluster=given.get("cluster"),
    )


async def furnish(state: State) -> None:
    """Puts the recorded account into the store, under its recorded ids."""
    async with state.change(ACCOUNT) as transaction:
        session, account, user = transaction.session, FIXTURE["account"], FIXTURE["user"]
        session.add(
            AccountRow(**account, created_at=now(), created_by=user["id"], settings=asdict(AccountSettings()), serial=1)
        )
        await session.flush()
        session.add(UserRow(**user, account_id=ACCOUNT, role=Role.OWNER, auto_groups=[], created_at=now()))
        session.add_all(_peer(peer) for peer in FIXTURE["peers"])
        for group in FIXTURE["groups"]:
            session.add(GroupRow(id=group["id"], account_id=ACCOUNT, name=group["name"]))
        await session.flush()
        for group in FIXTURE["groups"]:
            session.add_all(GroupPeerRow(group_id=group["id"], peer_id=peer_id) for peer_id in group["peers"])
        given = FIXTURE["policy"]
        rule = PolicyRule(
            id=given["id"],
            name=given["name"],
            sources=(GroupId(given["group"]),),
            destinations=(GroupId(given["group"]),),
            bidirectional=True,
            description=given["description"],
        )
        policy = Policy(PolicyId(given["id"]), given["name"], rules=(rule,), description=given["description"])
        session.add(rows.policy_row(ACCOUNT, policy))
        transaction.touch(
            account=True,
            users=[UserId(user["id"])],
            groups=[GroupId(group["id"]) for group in FIXTURE["groups"]],
            peers=[PeerId(peer["id"]) for peer in FIXTURE["peers"]],
            policies=[PolicyId(given["id"])],
        )


def _provider() -> IdentityProvider:
    """An identity provider that describes itself, which is all that the recorded calls ask of it."""
    issuer = "https://login.lab.test"
    described = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/auth",
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/keys",
    }
    settings = OidcSettings.model_validate(
        {"issuer": issuer, "client_id": "netbird", "callback_url": "https://m.lab.test/api/reverse-proxy/callback"}
    )
    return IdentityProvider(settings, transport=httpx.MockTransport(lambda _: httpx.Response(200, json=described)))


@asynccontextmanager
async def staged(state: State, directory: Path) -> AsyncIterator[Stage]:
    await furnish(state)
    hooks = load_hooks(["private_service", "direct_upstream"])
    host = ManagementServer(ManagementSettings(state_directory=directory), hooks, state)
    snapshot = state.snapshots.get(ACCOUNT)
    assert snapshot is not None
    owner = snapshot.users[UserId(FIXTURE["user"]["id"])]
    _, personal = await create_token(state, owner, name="test", days=1, created_by=owner.id)
    _, token = await create_proxy_token(state, name="proxy", account_id=ACCOUNT, created_by=owner.id)
    init = FIXTURE["proxy"]
    await proved_domain(state, ACCOUNT, init["address"])
    sign_on = SignOn(state, _provider(), SessionGates(hooks, host))
    async with (
        serve_grpc(host, Listener(listen="127.0.0.1:0"), grace=2.0, sign_on=sign_on) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(Context(state, hooks, NetworkMaps(hooks)))),
            base_url="http://localhost",
            headers={"authorization": f"Token {personal}", "content-type": "application/json"},
        ) as client,
    ):
        proxy = FakeProxy(
            channel,
            token,
            proxy_id=init["proxy_id"],
            cluster=init["address"],
            capabilities=ParseDict(init["capabilities"], ProxyCapabilities()),
        )
        await proxy.connect()
        yield Stage(state, client, proxy, port)
        proxy.call.cancel()


@pytest.fixture
async def stage(state: State, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(state, tmp_path) as opened:
        yield opened
