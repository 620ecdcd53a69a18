"""Agents that log in by their user's token, whose logins expire, and who leave."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from joserfc import jwt

from netbird_management.login.agent_logins import AgentLogins
from netbird_management.login.identity_provider import IdentityProvider
from netbird_management.login.settings import OidcSettings
from netbird_management.model.accounts import Peer, Role, User
from netbird_management.model.clock import now
from netbird_management.operations.account_settings import SettingsChange, update_account
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import get_peer
from netbird_management.operations.setup_keys import create_setup_key
from netbird_management.operations.users import create_user, update_user
from netbird_management.store.models import PeerRow
from netbird_wire.management_pb2 import (
    Empty,
    LoginRequest,
    PeerSystemMeta,
    SyncMetaRequest,
    SyncResponse,
)
from netbird_wire.proxy_service_pb2 import ProxyCapabilities, ValidateTunnelPeerRequest
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import SECONDS, FakePeer, Lab, eventually, lab_for, register, soon
from tests.netbird_management.login.test_sign_on import ISSUER, KEY, Provider

Code = grpc.StatusCode
EXPIRED = "peer login has expired, please log in once more"


def token(**claims: Any) -> str:
    when = int(time.time())
    whole = {"iss": ISSUER, "aud": "m", "sub": "u-1", "iat": when, "exp": when + 60, **claims}
    named = {"email": "alice@lab.test", "email_verified": True}
    return jwt.encode({"alg": "RS256", "kid": "k1"}, {**named, **whole}, KEY)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def lab(home: Home, tmp_path: Path, provider: Provider) -> AsyncIterator[Lab]:
    async with lab_with(home, tmp_path, provider) as opened:
        yield opened


@asynccontextmanager
async def lab_with(home: Home, directory: Path, provider: Provider, **options: Any) -> AsyncIterator[Lab]:
    settings = OidcSettings(
        issuer=ISSUER, client_id="m", callback_url="https://m.lab.test/api/reverse-proxy/callback", **options
    )
    asked = IdentityProvider(settings, transport=httpx.MockTransport(provider.handle))
    async with lab_for(home, directory, agents=AgentLogins(home.state, asked)) as opened:
        yield opened


@pytest.fixture
async def alice(lab: Lab) -> User:
    group = await lab.group("engineering")
    return await create_user(
        lab.home.state, lab.home.account_id, role=Role.USER, email="alice@lab.test", auto_groups=[group.id]
    )


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def the_end(agent: FakePeer) -> None:
    """Reads the stream to its end, which is an error."""
    while True:
        await agent.next()


def peer_of(lab: Lab, agent: FakePeer) -> Peer:
    match = lab.home.state.snapshots.by_peer_key(agent.key)
    assert match is not None
    return match[1]


async def age(lab: Lab, peer: Peer, seconds: float) -> None:
    """Moves the peer's last login into the past."""
    async with lab.home.state.change(peer.account_id) as transaction:
        row = await transaction.session.get_one(PeerRow, peer.id)
        row.last_login = now() - timedelta(seconds=seconds)
        transaction.touch(peers=[peer.id])


async def expiry(lab: Lab, seconds: int, *, enabled: bool = True) -> None:
    settings = lab.home.snapshot.account.settings
    change = replace(settings, peer_login_expiration_enabled=enabled, peer_login_expiration=seconds)
    await update_account(lab.home.state, lab.home.account_id, SettingsChange(change))


def names(message: SyncResponse, part: str = "remotePeers") -> set[str]:
    return {peer.fqdn.split(".")[0] for peer in getattr(message.NetworkMap, part)}


async def test_a_users_token_adds_their_peer(lab: Lab, alice: User) -> None:
    """In the user's auto groups and All; the deadline of the login is told; later logins need no token."""
    agent = lab.peer()
    answer = await agent.login(jwtToken=token())
    peer = peer_of(lab, agent)

    assert (peer.user_id, peer.login_expiration_enabled, peer.stock) == (alice.id, True, False)
    assert [group.name for group in lab.home.snapshot.groups_of(peer.id)] == ["All", "engineering"]
    assert peer.last_login is not None
    assert abs(answer.sessionExpiresAt.seconds - (peer.last_login + timedelta(days=1)).timestamp()) <= 1
    assert (await agent.login()).sessionExpiresAt == answer.sessionExpiresAt
    assert (await agent.sync()).sessionExpiresAt == answer.sessionExpiresAt


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"iss": "https://other.test"},
        {"exp": 1},
        {"sub": ""},
        {"azp": "other"},
        {"events": {}},
        {"padding": "x" * 20_000},
    ],
)
async def test_a_token_of_others_is_invalid(lab: Lab, alice: User, claims: dict[str, Any]) -> None:
    """Another client's, provider's or moment's: INVALID_ARGUMENT, at which agents stop trying, and no peer."""
    assert (await refused(lab.peer().login(jwtToken=token(**claims))))[0] is Code.INVALID_ARGUMENT
    assert not lab.home.snapshot.peers


async def test_agents_may_have_a_client_of_their_own(home: Home, tmp_path: Path, provider: Provider) -> None:
    """Its tokens log agents in if the settings name it."""
    await create_user(home.state, home.account_id, role=Role.USER, email="alice@lab.test")
    async with lab_with(home, tmp_path, provider, agent_client_ids=("cli",)) as lab:
        assert (await lab.peer().login(jwtToken=token(aud="cli"))).HasField("peerConfig")
        assert (await lab.peer().login(jwtToken=token(aud=["cli", "x"], azp="cli"))).HasField("peerConfig")
        assert (await refused(lab.peer().login(jwtToken=token(aud="x"))))[0] is Code.INVALID_ARGUMENT


async def test_a_provider_that_is_away_is_asked_again(lab: Lab, alice: User, provider: Provider) -> None:
    """UNAVAILABLE, at which agents try again."""
    provider.down = True
    assert (await refused(lab.peer().login(jwtToken=token())))[0] is Code.UNAVAILABLE


async def test_a_stranger_waits_for_approval(lab: Lab) -> None:
    """A person whom nobody invited becomes a user who waits, and gets no peer."""
    code, details = await refused(lab.peer().login(jwtToken=token(sub="u-2", email="eve@lab.test")))

    assert (code, "approval" in details) == (Code.PERMISSION_DENIED, True)
    assert not lab.home.snapshot.peers
    [eve] = [user for user in lab.home.snapshot.users.values() if user.email == "eve@lab.test"]
    assert eve.pending_approval


async def test_with_several_accounts_only_a_known_person_logs_in(lab: Lab, alice: User) -> None:
    """Nothing says which account a new one would join."""
    await lab.peer().login(jwtToken=token())
    await create_account(lab.home.state, email="other@lab.test", name="Other")

    assert (await lab.peer().login(jwtToken=token())).HasField("peerConfig")
    assert (await refused(lab.peer().login(jwtToken=token(sub="u-2", email=""))))[0] is Code.PERMISSION_DENIED


async def test_a_peer_is_its_users(lab: Lab, alice: User) -> None:
    """Another user's token does not renew it, nor does any token take over a peer that a setup key added."""
    await create_user(lab.home.state, lab.home.account_id, role=Role.USER, email="bob@lab.test")
    agent, other = lab.peer(), lab.peer()
    await agent.login(jwtToken=token())
    _, plain = await create_setup_key(
        lab.home.state, lab.home.account_id, name="k", kind="reusable", expires_in=0, auto_groups=[]
    )
    await other.login(setupKey=plain)

    bob = token(sub="u-2", email="bob@lab.test")
    assert (await refused(agent.login(jwtToken=bob)))[0] is Code.PERMISSION_DENIED
    assert (await refused(other.login(jwtToken=token())))[0] is Code.PERMISSION_DENIED
    assert peer_of(lab, agent).user_id == alice.id
    assert peer_of(lab, other).user_id is None


async def test_a_blocked_user_logs_no_peer_in(lab: Lab, alice: User) -> None:
    """With their token or without, new peer or old one."""
    agent = lab.peer()
    await agent.login(jwtToken=token())
    await update_user(lab.home.state, lab.home.account_id, alice.id, role=Role.USER, auto_groups=[], blocked=True)

    for login in (agent.login(), agent.login(jwtToken=token()), lab.peer().login(jwtToken=token())):
        assert (await refused(login))[0] is Code.PERMISSION_DENIED


async def test_extra_labels_need_a_key_that_allows_them(lab: Lab, alice: User) -> None:
    """A user's login allows none."""
    code, details = await refused(lab.peer().login(jwtToken=token(), dnsLabels=["web"]))
    assert (code, "setup key" in details) == (Code.FAILED_PRECONDITION, True)
    assert not lab.home.snapshot.peers


async def test_a_login_expires(lab: Lab, alice: User) -> None:
    """The stream ends at once and with the sentence that agents show; others have the peer as offline; neither
    logging in again nor another stream helps, but the user's token does."""
    agent, other = lab.peer(), lab.peer()
    await agent.login(jwtToken=token())
    await lab.stock_peer("other", key=other.key)
    await agent.sync()
    assert "node" in names(await other.sync())
    peer = peer_of(lab, agent)

    await age(lab, peer, 86_401)
    assert await refused(the_end(agent)) == (Code.PERMISSION_DENIED, EXPIRED)
    later = await other.until(lambda message: bool(message.NetworkMap.offlinePeers))
    assert (names(later), names(later, "offlinePeers")) == (set(), {"node"})
    assert not later.NetworkMap.FirewallRules
    for call in (agent.login(), agent.sync()):
        assert await refused(call) == (Code.PERMISSION_DENIED, EXPIRED)
    assert get_peer(lab.home.state, lab.home.account_id, peer.id).login_expired

    answer = await agent.login(jwtToken=token())
    assert answer.sessionExpiresAt.seconds > time.time()
    back = await other.until(lambda message: bool(message.NetworkMap.remotePeers))
    assert (names(back), names(back, "offlinePeers")) == ({"node"}, set())
    assert not get_peer(lab.home.state, lab.home.account_id, peer.id).login_expired


async def test_promise_8_proxies_refuse_a_peer_whose_login_expired(lab: Lab, alice: User) -> None:
    """At once: they are told to ask again, the answer is no, and the map of their own peer has it as offline."""
    agent = lab.peer()
    await agent.login(jwtToken=token())
    peer = peer_of(lab, agent)
    service = await lab.service("wiki", await lab.group("members", peer))
    proxy = lab.proxy(
        capabilities=ProxyCapabilities(
            supports_custom_ports=True, private=True, supports_private_service=True, claims=["private"]
        )
    )
    await proxy.connect()
    node = lab.peer()
    assert (await register(proxy, service, peer=node)).success
    await node.login()
    assert names(await node.sync()) == {"node"}
    request = ValidateTunnelPeerRequest(domain=service.domain, tunnel_ip=str(peer.ip))
    assert (await proxy.unary("ValidateTunnelPeer", request)).valid

    await age(lab, peer, 86_401)
    later = await node.until(lambda message: bool(message.NetworkMap.offlinePeers))
    assert (names(later), later.NetworkMap.firewallRulesIsEmpty) == (set(), True)
    answer = await proxy.unary("ValidateTunnelPeer", request)
    assert (answer.valid, answer.denied_reason, answer.session_token) == (False, "login_expired", "")
    while peer.key not in {entry.peer_key for entry in (await proxy.next()).revalidations}:
        pass


async def test_a_plain_login_does_not_put_the_expiry_off(lab: Lab, alice: User) -> None:
    """Only the user's own login counts."""
    agent = lab.peer()
    await agent.login(jwtToken=token())
    await age(lab, peer_of(lab, agent), 80_000)
    before = peer_of(lab, agent).last_login

    await agent.login()
    assert peer_of(lab, agent).last_login == before


async def test_the_accounts_settings_decide(lab: Lab, alice: User) -> None:
    """A shorter time expires the login at once, and a longer one, or none, ends that."""
    agent = lab.peer()
    await agent.login(jwtToken=token())
    await age(lab, peer_of(lab, agent), 3600)
    await agent.sync()

    await expiry(lab, 1800)
    assert await refused(the_end(agent)) == (Code.PERMISSION_DENIED, EXPIRED)
    await expiry(lab, 7200)

    async def expired() -> bool:
        return peer_of(lab, agent).login_expired

    await eventually(expired, lambda value: not value)
    assert (await agent.sync()).sessionExpiresAt.seconds > time.time()
    await expiry(lab, 1800, enabled=False)
    renewed = await agent.until(lambda message: message.HasField("sessionExpiresAt"))
    assert (renewed.sessionExpiresAt.seconds, renewed.HasField("netbirdConfig")) == (0, False)


async def test_peers_without_a_users_login_never_expire(lab: Lab) -> None:
    """Peers of setup keys get a deadline of zero, as from NetBird."""
    _, plain = await create_setup_key(
        lab.home.state, lab.home.account_id, name="k", kind="reusable", expires_in=0, auto_groups=[]
    )
    agent = lab.peer()
    answer = await agent.login(setupKey=plain)
    await age(lab, peer_of(lab, agent), 1_000_000)

    assert answer.HasField("sessionExpiresAt")
    assert answer.sessionExpiresAt.seconds == 0
    assert (await agent.login()).sessionExpiresAt.seconds == 0


async def test_a_report_of_the_machine_is_stored(lab: Lab) -> None:
    """SyncMeta, between two logins."""
    agent = lab.peer()
    await lab.stock_peer("laptop", key=agent.key)
    meta = PeerSystemMeta(hostname="node", netbirdVersion="0.78.0")
    meta.flags.blockInbound = True
    await agent.stub.SyncMeta(await agent.sealed(SyncMetaRequest(meta=meta)), timeout=SECONDS)

    stored = peer_of(lab, agent).meta
    assert (stored.netbird_version, stored.flags) == ("0.78.0", ("block_inbound",))
    stranger = lab.peer()
    request = await stranger.sealed(SyncMetaRequest(meta=meta))
    assert (await refused(stranger.stub.SyncMeta(request, timeout=SECONDS)))[0] is Code.PERMISSION_DENIED


async def test_a_logout_deletes_the_peer(lab: Lab) -> None:
    """Its stream ends, and the key may join again; a stranger has nothing to leave."""
    agent = lab.peer()
    await lab.stock_peer("laptop", key=agent.key)
    await agent.sync()
    stream, envelope = agent.call, agent.envelope
    await agent.stub.Logout(await agent.sealed(Empty()), timeout=SECONDS)

    agent.call, agent.envelope = stream, envelope
    assert await refused(the_end(agent)) == (Code.PERMISSION_DENIED, "peer is not registered")
    assert not lab.home.snapshot.peers
    assert (await refused(agent.stub.Logout(await agent.sealed(Empty()), timeout=SECONDS)))[0] is Code.PERMISSION_DENIED


async def test_a_forged_logout_deletes_nothing(lab: Lab) -> None:
    """The envelope is what proves the key: another peer's does not open."""
    victim, eve = lab.peer(), lab.peer()
    await lab.stock_peer("victim", key=victim.key)
    await lab.stock_peer("eve", key=eve.key)
    request = await eve.sealed(Empty())
    request.wgPubKey = victim.key

    assert (await refused(eve.stub.Logout(request, timeout=SECONDS)))[0] is Code.INVALID_ARGUMENT
    assert len(lab.home.snapshot.peers) == 2


async def test_the_rest_is_refused_as_agents_tolerate_it(lab: Lab) -> None:
    """UNIMPLEMENTED, at which agents go without."""
    agent = lab.peer()
    await lab.stock_peer("laptop", key=agent.key)
    stub = agent.stub
    for method in (
        stub.ExtendAuthSession,
        stub.GetDeviceAuthorizationFlow,
        stub.GetPKCEAuthorizationFlow,
        stub.CreateExpose,
        stub.RenewExpose,
        stub.StopExpose,
    ):
        assert (await refused(method(await agent.sealed(LoginRequest()), timeout=SECONDS)))[0] is Code.UNIMPLEMENTED
    assert await soon(stub.Job().code()) is Code.UNIMPLEMENTED


async def test_without_a_provider_there_is_no_login_by_user(home: Home, tmp_path: Path) -> None:
    """NOT_FOUND, from which agents conclude that they need a setup key."""
    async with lab_for(home, tmp_path) as lab:
        agent = lab.peer()
        for method in (agent.stub.GetDeviceAuthorizationFlow, agent.stub.GetPKCEAuthorizationFlow):
            assert (await refused(method(await agent.sealed(Empty()), timeout=SECONDS)))[0] is Code.NOT_FOUND
