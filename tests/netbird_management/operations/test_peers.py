"""Peers: how they come, whose they are, and how presence is kept straight."""

import asyncio
import base64
import os
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from netbird_management.model.accounts import Peer, PeerMeta, Role
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from netbird_management.model.ids import ServiceId
from netbird_management.operations.accounts import create_account
from netbird_management.operations.dns import set_disabled_groups
from netbird_management.operations.events import events_of
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import (
    create_proxy_peer,
    create_stock_peer,
    disconnect_all_peers,
    enroll_by_user,
    get_peer,
    note_seen,
    set_connected,
    set_disconnected,
    set_login_expired,
    sweep_ephemeral_peers,
    update_peer_meta,
)
from netbird_management.operations.users import create_token, create_user, delete_user, update_user
from netbird_management.secrets.one_time import OneTimeToken, mint, verify
from netbird_management.store.models import PeerRow
from netbird_overlay.wgconf import parse_config
from netbird_wire.envelope import format_key
from netbird_wire.management_pb2 import PeerCapabilityIPv6Overlay
from tests.netbird_management.conftest import Api, Home

SERVICE = ServiceId("service")


def new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def token(home: Home, *, proxy_token: str = "t") -> OneTimeToken:
    text = mint(home.state.vault, home.account_id, SERVICE, proxy_token)
    return verify(home.state.vault, text, home.account_id, SERVICE, proxy_token)


async def proxy_peer(home: Home, *, key: str = "", endpoint: str = "") -> Peer:
    return await create_proxy_peer(
        home.state,
        home.account_id,
        key=key or new_key(),
        cluster="px.test",
        token=token(home),
        wireguard_endpoint=endpoint,
    )


def names(home: Home, peer: Peer) -> list[str]:
    return [group.name for group in home.snapshot.groups_of(peer.id)]


async def test_a_stock_peer_gets_its_groups_and_an_address(home: Home) -> None:
    """All, the user's auto groups, and those asked for; one free address in each network; a label of its name."""
    state, account_id = home.state, home.account_id
    auto = await create_group(state, account_id, name="auto")
    asked = await create_group(state, account_id, name="asked")
    user = await create_user(state, account_id, role=Role.USER, email="a@b.test", auto_groups=[auto.id])
    peer, private_key = await create_stock_peer(
        state, account_id, name="Ada's Phone.local", user_id=user.id, group_ids=[asked.id]
    )
    assert names(home, peer) == ["All", "asked", "auto"]
    assert private_key is not None
    assert private_key != peer.key
    assert peer.ip in home.snapshot.account.network
    assert peer.ipv6 in home.snapshot.account.network_v6
    assert peer.dns_label == "ada-s-phone"
    second, none = await create_stock_peer(state, account_id, name="ada-s-phone", user_id=None, public_key=new_key())
    assert none is None
    assert second.dns_label == f"ada-s-phone-{second.ip.packed[2]}-{second.ip.packed[3]}"
    for address in (peer.ip, str(peer.ipv6), f"::ffff:{peer.ip}"):
        assert home.snapshot.peer_by_address(address) == peer


async def test_bad_peers_are_refused(home: Home) -> None:
    """A name that could pass for a user, a key that is none or known, a user or a group that is not there."""
    state, account_id = home.state, home.account_id
    known, _ = await create_stock_peer(state, account_id, name="known", user_id=None)
    for name in ("", " ", "alice@lab.test", "a\r\nb", "x" * 256):
        with pytest.raises(InvalidArgument):
            await create_stock_peer(state, account_id, name=name, user_id=None)
    for key in ("x", base64.b64encode(bytes(31)).decode(), new_key() + "\n"):
        with pytest.raises(InvalidArgument):
            await create_stock_peer(state, account_id, name="p", user_id=None, public_key=key)
    with pytest.raises(Conflict):
        await create_stock_peer(state, account_id, name="p", user_id=None, public_key=known.key)
    with pytest.raises(InvalidArgument):
        await create_stock_peer(state, account_id, name="p", user_id=home.owner.id[:-1])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await create_stock_peer(state, account_id, name="p", user_id=None, group_ids=["nothing"])  # type: ignore[list-item]
    assert len(home.snapshot.peers) == 1


async def test_peers_move_with_their_users_groups(home: Home) -> None:
    """What a user's groups gain and lose, the user's peers do; deleting the user takes the peers too."""
    state, account_id = home.state, home.account_id
    one = await create_group(state, account_id, name="one")
    two = await create_group(state, account_id, name="two")
    user = await create_user(state, account_id, role=Role.USER, email="a@b.test", auto_groups=[one.id])
    peer, _ = await create_stock_peer(state, account_id, name="p", user_id=user.id)
    serial = home.snapshot.account.serial
    await update_user(state, account_id, user.id, role=Role.USER, auto_groups=[two.id], blocked=False)
    assert names(home, peer) == ["All", "two"]
    assert home.snapshot.account.serial > serial
    await delete_user(state, account_id, user.id)
    assert peer.id not in home.snapshot.peers
    assert peer.id not in home.snapshot.group_all.peers
    assert state.snapshots.by_peer_key(peer.key) is None


async def test_a_proxys_peer_is_in_no_group(home: Home) -> None:
    """Not even in All; so no policy of the account selects it, and no group can take it in."""
    peer = await proxy_peer(home)
    assert names(home, peer) == []
    assert home.snapshot.proxy_peers("px.test") == (peer,)
    with pytest.raises(InvalidArgument, match="belongs to a proxy"):
        await create_group(home.state, home.account_id, name="g", peers=[peer.id])


async def test_a_known_proxy_keeps_its_address(home: Home) -> None:
    """The same key again is the same peer, with the cluster and endpoint told now: stock clients' files stay valid."""
    key = new_key()
    first = await proxy_peer(home, key=key)
    again = await proxy_peer(home, key=key, endpoint="192.0.2.1:51820")
    assert (again.id, again.ip, again.ipv6) == (first.id, first.ip, first.ipv6)
    assert again.proxy is not None
    assert again.proxy.wireguard_endpoint == "192.0.2.1:51820"


async def test_a_proxy_cannot_take_a_key_of_another(home: Home) -> None:
    """Neither a member's key nor another account's proxy's: its traffic would be taken for theirs."""
    member, _ = await create_stock_peer(home.state, home.account_id, name="member", user_id=None)
    proxy = await proxy_peer(home)
    other_id, owner = await create_account(home.state, email="eve@evil.test", name="Eve")
    other = Home(home.state, other_id, owner)
    for where, key in ((home, member.key), (other, proxy.key)):
        with pytest.raises(PermissionDenied):
            await proxy_peer(where, key=key)
    assert get_peer(home.state, home.account_id, member.id).proxy is None


async def test_a_one_time_token_makes_one_peer(home: Home) -> None:
    """Spent in the transaction that makes the peer: of many at once one wins, and a failed one spends nothing."""
    once = token(home)

    async def attempt() -> bool:
        try:
            await create_proxy_peer(home.state, home.account_id, key=new_key(), cluster="px.test", token=once)
        except PermissionDenied:
            return False
        return True

    assert sorted(await asyncio.gather(*(attempt() for _ in range(5)))) == [False] * 4 + [True]
    assert len(home.snapshot.peers) == 1
    fresh = token(home)
    with pytest.raises(InvalidArgument):
        await create_proxy_peer(home.state, home.account_id, key="none", cluster="px.test", token=fresh)
    await create_proxy_peer(home.state, home.account_id, key=new_key(), cluster="px.test", token=fresh)


def test_a_one_time_token_is_for_exactly_these(home: Home) -> None:
    """Another account, service or proxy's token, a changed text, another installation's: all the same refusal."""
    vault = home.state.vault
    text = mint(vault, home.account_id, SERVICE, "t")
    assert verify(vault, text, home.account_id, SERVICE, "t").expires_at > now()
    moved = base64.urlsafe_b64encode(b"\xff" + base64.urlsafe_b64decode(text)[1:]).decode()
    wrong = [
        (text, "other", SERVICE, "t"),
        (text, home.account_id, "other", "t"),
        (text, home.account_id, SERVICE, "u"),
        (moved, home.account_id, SERVICE, "t"),
        ("", home.account_id, SERVICE, "t"),
        ("?", home.account_id, SERVICE, "t"),
        (mint(type(vault)(bytes(32)), home.account_id, SERVICE, "t"), home.account_id, SERVICE, "t"),
    ]
    for given, account_id, service_id, proxy_token in wrong:
        with pytest.raises(PermissionDenied, match="token validation: invalid token"):
            verify(vault, given, account_id, service_id, proxy_token)  # type: ignore[arg-type]


async def test_a_late_end_of_an_old_stream_changes_nothing(home: Home) -> None:
    """Presence is fenced by the stream's start: only the stream that made a peer present ends its presence."""
    peer = await proxy_peer(home)

    def connected() -> bool:
        return get_peer(home.state, home.account_id, peer.id).connected

    assert await set_connected(home.state, peer, started_ns=1)
    assert await set_connected(home.state, peer, started_ns=2, connection_ip="192.0.2.1")
    assert not await set_connected(home.state, peer, started_ns=1)
    assert not await set_disconnected(home.state, peer, started_ns=1)
    assert connected()
    assert await set_disconnected(home.state, peer, started_ns=2)
    assert not connected()
    await set_connected(home.state, peer, started_ns=3)
    await disconnect_all_peers(home.state)
    assert not connected()


async def test_what_a_peer_says_of_itself_changes_no_name(home: Home) -> None:
    """Meta is stored; name, label and address stay; the same again writes nothing."""
    peer, _ = await create_stock_peer(home.state, home.account_id, name="p", user_id=None)
    told = await update_peer_meta(home.state, peer, PeerMeta(hostname="evil@host", os="x"), ssh_key="k")
    assert (told.name, told.dns_label, told.ip) == (peer.name, peer.dns_label, peer.ip)
    before = home.snapshot
    await update_peer_meta(home.state, told, told.meta)
    assert home.snapshot is before


async def test_seen_is_written_once_an_hour(home: Home) -> None:
    """A grant is the only sign of life of a stock peer, and not worth a write each."""
    peer, _ = await create_stock_peer(home.state, home.account_id, name="p", user_id=None)
    await note_seen(home.state, peer)
    seen = get_peer(home.state, home.account_id, peer.id)
    assert seen.last_seen is not None
    before = home.snapshot
    await note_seen(home.state, seen)
    await note_seen(home.state, peer)  # asked with an older snapshot in hand
    assert home.snapshot is before


async def test_absent_proxies_are_swept_unless_clients_rely_on_them(home: Home) -> None:
    """Ten minutes away ends a proxy's peer; not one with a WireGuard endpoint, a connected one, or an ordinary peer."""
    gone = await proxy_peer(home)
    kept = [
        await proxy_peer(home, endpoint="192.0.2.1:51820"),
        await proxy_peer(home),
        (await create_stock_peer(home.state, home.account_id, name="p", user_id=None))[0],
    ]
    await set_connected(home.state, kept[1], started_ns=1)
    await sweep_ephemeral_peers(home.state)
    assert len(home.snapshot.peers) == 4
    async with home.state.change(home.account_id) as transaction:
        past = now() - timedelta(minutes=11)
        await transaction.session.execute(update(PeerRow).values(created_at=past, last_seen=past))
        transaction.touch(peers=home.snapshot.peers)
    await sweep_ephemeral_peers(home.state)
    assert set(home.snapshot.peers) == {peer.id for peer in kept}
    with pytest.raises(NotFound):
        get_peer(home.state, home.account_id, gone.id)


async def test_a_stock_client_is_told_what_it_needs(api: Api) -> None:
    """409 until a proxy has an endpoint, then a file with one [Peer] a proxy; the private key only at creation."""
    made = await api.ok("POST", "/api/peers", {"name": "phone"})
    path = f"/api/peers/{made['id']}/wireguard"
    status, message = await api.refused("GET", path)
    assert status == 409
    assert "no proxy" in message
    await proxy_peer(api.home)
    assert (await api.refused("GET", path))[0] == 409
    proxy = await proxy_peer(api.home, endpoint="192.0.2.1:51820")
    answer = await api.call("GET", path)
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == (
        "[Interface]\n# phone\n# PrivateKey =\n"
        f"Address = {made['ip']}/32\nMTU = 1280\n\n"
        f"[Peer]\n# {proxy.name} (px.test)\nPublicKey = {proxy.key}\nAllowedIPs = {proxy.ip}/32\n"
        "Endpoint = 192.0.2.1:51820\nPersistentKeepalive = 25\n"
    )
    assert len(base64.b64decode(made["private_key"])) == 32
    shown = await api.ok("GET", f"/api/peers/{made['id']}")
    assert "private_key" not in shown
    assert made["private_key"] not in answer.text
    assert (await api.ok("PUT", f"/api/peers/{made['id']}", {"name": "tablet"}))["dns_label"] == shown["dns_label"]


async def test_a_stock_client_uses_ipv6_with_the_proxies_that_do(api: Api) -> None:
    """Its address and the proxy's, and its name server, in both families; the proxy without IPv6 keeps one."""
    home = api.home
    peer, _ = await create_stock_peer(home.state, home.account_id, name="phone", user_id=None)
    for capabilities in ((), (PeerCapabilityIPv6Overlay,)):
        proxy = await create_proxy_peer(
            home.state,
            home.account_id,
            key=new_key(),
            cluster="px.test",
            token=token(home),
            wireguard_endpoint="192.0.2.1:51820",
            serves_dns=True,
        )
        await update_peer_meta(home.state, proxy, replace(proxy.meta, capabilities=capabilities))
    old, new = (each for each in home.snapshot.peers.values() if each.proxy is not None)
    if old.meta.capabilities:
        old, new = new, old
    text = (await api.call("GET", f"/api/peers/{peer.id}/wireguard")).text
    config = parse_config(text.replace("# PrivateKey =", f"PrivateKey = {new_key()}"))
    assert [str(each) for each in config.addresses] == [f"{peer.ip}/32", f"{peer.ipv6}/128"]
    allowed = {format_key(each.public_key): [str(network) for network in each.allowed_ips] for each in config.peers}
    assert allowed == {old.key: [f"{old.ip}/32"], new.key: [f"{new.ip}/32", f"{new.ipv6}/128"]}
    (dns,) = [line for line in text.splitlines() if line.startswith("DNS = ")]
    assert set(dns.removeprefix("DNS = ").split(", ")) == {str(old.ip), str(new.ip), str(new.ipv6)}


async def test_proxies_peers_are_not_shown(api: Api) -> None:
    """Left out of the list; asked for by id: 422."""
    peer = await proxy_peer(api.home)
    assert await api.ok("GET", "/api/peers") == []
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/wireguard")):
        assert (await api.refused(method, f"/api/peers/{peer.id}{path}", {"name": "x"}))[0] == 422


async def test_whom_a_peer_can_reach(api: Api) -> None:
    """By the rules of now: all of All by the first policy, and nobody once it is gone; never a proxy's own peer."""
    home = api.home
    alice, _ = await create_stock_peer(home.state, home.account_id, name="alice", user_id=home.owner.id)
    bob, _ = await create_stock_peer(home.state, home.account_id, name="bob", user_id=None)
    await proxy_peer(home)
    path = f"/api/peers/{alice.id}/accessible-peers"
    (found,) = await api.ok("GET", path)
    assert (found["id"], found["name"], found["ip"], found["user_id"]) == (bob.id, "bob", str(bob.ip), "")
    (policy,) = await api.ok("GET", "/api/policies")
    await api.ok("DELETE", f"/api/policies/{policy['id']}")
    assert await api.ok("GET", path) == []


async def test_what_a_peer_cannot_become(api: Api) -> None:
    """What its page shows can be sent back; what would do nothing is refused and not taken for done."""
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="alice", user_id=None)
    path = f"/api/peers/{peer.id}"
    shown = await api.ok("GET", path)
    assert (await api.ok("PUT", path, {**shown, "name": "renamed"}))["name"] == "renamed"
    for change in (
        {"ssh_enabled": True},
        {"inactivity_expiration_enabled": True},
        {"approval_required": True},
        {"ip": "100.64.0.77"},
        {"ipv6": "fd00::77"},
    ):
        assert (await api.refused("PUT", path, {**shown, **change}))[0] == 422, change
    code, message = await api.refused("PUT", path, {**shown, "login_expiration_enabled": True})
    assert (code, "cannot expire" in message) == (412, True)


async def test_the_api_shows_what_an_agent_reports(api: Api) -> None:
    """Presence, address, version, names and its own settings; users see whether their login has expired."""
    state, account_id = api.home.state, api.home.account_id
    user = await create_user(state, account_id, role=Role.USER, email="a@b.test")
    meta = PeerMeta(hostname="laptop", netbird_version="0.78.0", flags=("block_inbound",))
    peer = await enroll_by_user(state, user, key=new_key(), hostname="laptop", meta=meta, ssh_key="")
    await set_connected(state, peer, started_ns=1, connection_ip="192.0.2.7")
    shown = await api.ok("GET", f"/api/peers/{peer.id}")

    assert (shown["connected"], shown["connection_ip"], shown["version"]) == (True, "192.0.2.7", "0.78.0")
    assert shown["last_seen"] > "2026"
    assert [name for name, on in shown["local_flags"].items() if on] == ["block_inbound"]
    assert (shown["login_expiration_enabled"], shown["login_expired"], shown["user_id"]) == (True, False, user.id)
    await set_login_expired(state, account_id, now() + timedelta(days=2))
    assert (await api.ok("GET", f"/api/peers/{peer.id}"))["login_expired"]
    off = await api.ok("PUT", f"/api/peers/{peer.id}", {**shown, "login_expiration_enabled": False})
    assert (off["login_expiration_enabled"], off["login_expired"]) == (False, False)
    assert Activity.PEER_EXPIRY_DISABLE in {event.activity for event in await events_of(state, account_id)}


async def test_no_user_keeps_their_own_login_from_expiring(api: Api) -> None:
    """They may rename their peer, and send back what they were shown."""
    state, account_id = api.home.state, api.home.account_id
    user = await create_user(state, account_id, role=Role.USER, email="a@b.test")
    _, secret = await create_token(state, user, name="own", days=1, created_by=user.id)
    peer = await enroll_by_user(state, user, key=new_key(), hostname="laptop", meta=PeerMeta(), ssh_key="")
    own = {"authorization": f"Token {secret}"}
    path = f"/api/peers/{peer.id}"
    shown = await api.ok("GET", path, headers=own)

    assert (await api.ok("PUT", path, {**shown, "name": "mine"}, headers=own))["name"] == "mine"
    assert (await api.refused("PUT", path, {**shown, "login_expiration_enabled": False}, headers=own))[0] == 403


async def test_a_stock_clients_file_names_the_proxies_that_answer_dns(api: Api) -> None:
    """In order, beside proxies that do not; not for a peer whose group's DNS is switched off."""
    home = api.home
    proxies = [
        await create_proxy_peer(
            home.state,
            home.account_id,
            key=new_key(),
            cluster="px.test",
            token=token(home),
            wireguard_endpoint=f"192.0.2.{number}:51820",
            serves_dns=number != 2,
        )
        for number in (1, 2, 3)
    ]
    peer, _ = await create_stock_peer(home.state, home.account_id, name="phone", user_id=None)
    path = f"/api/peers/{peer.id}/wireguard"
    text = (await api.call("GET", path)).text
    answering = sorted((proxies[0], proxies[2]), key=lambda proxy: proxy.id)

    assert f"DNS = {answering[0].ip}, {answering[1].ip}\n" in text
    await set_disabled_groups(home.state, home.account_id, [home.snapshot.group_all.id])
    assert "DNS" not in (await api.call("GET", path)).text
