"""A person who takes no part leaves maps, rules and services at once, for whatever reason they take none."""

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import pytest
from nacl.public import PrivateKey
from sqlalchemy import update

from netbird_management.compute.mapping import build
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import (
    NetworkResource,
    NetworkRouter,
    Peer,
    PeerMeta,
    Resource,
    ResourceType,
    Role,
    User,
)
from netbird_management.model.admission import Refusal, admitted, refusal
from netbird_management.model.clock import now
from netbird_management.model.errors import PreconditionFailed
from netbird_management.model.services import Service, Target, TargetType
from netbird_management.operations.networks import save_network, save_resource, save_router
from netbird_management.operations.peers import (
    PROXY_ABSENT_SECONDS,
    create_stock_peer,
    delete_peer,
    sweep_ephemeral_peers,
)
from netbird_management.operations.policies import create_policy
from netbird_management.operations.proxies import Registration
from netbird_management.operations.services import create_service, delete_service
from netbird_management.operations.setup_keys import create_setup_key, enroll
from netbird_management.operations.users import approve_user, create_user, delete_user, reject_user, update_user
from netbird_management.store.models import PeerRow, UserRow
from netbird_wire.management_pb2 import NetworkMap
from tests.netbird_management import store_child
from tests.netbird_management.compute.test_network_map import allow
from tests.netbird_management.conftest import Api, Home
from tests.netbird_management.store_child import HOOKS, SENT


@dataclass(frozen=True)
class Two:
    """Alice and Bob with a peer each, who may talk to one another; Alice's peer leads to a network, too."""

    home: Home
    alice: User
    hers: Peer
    his: Peer

    def his_map(self) -> NetworkMap:
        return NetworkMaps(HOOKS).of(self.home.snapshot, self.home.snapshot.peers[self.his.id])

    def names_her(self) -> bool:
        """Whether anything of Bob's map leads to Alice's peer."""
        shown = self.his_map()
        address = str(self.hers.ip)
        return (
            any(remote.wgPubKey == self.hers.key for remote in shown.remotePeers)
            or any(rule.PeerIP == address for rule in shown.FirewallRules)
            or any(route.Peer == self.hers.key for route in shown.Routes)
            or any(address == record.RData for zone in shown.DNSConfig.CustomZones for record in zone.Records)
        )


@pytest.fixture
async def two(home: Home) -> Two:
    state, account_id = home.state, home.account_id
    users = [
        await create_user(state, account_id, role=Role.USER, email=f"{name}@lab.test") for name in ("alice", "bob")
    ]
    peers = [
        (await create_stock_peer(state, account_id, name=f"phone {user.email[0]}", user_id=user.id))[0]
        for user in users
    ]
    network = await save_network(state, account_id, "", name="office", description="")
    resource = NetworkResource("", "printer", ResourceType.HOST, "192.0.2.7", groups=(home.snapshot.group_all.id,))
    await save_resource(state, account_id, network.id, resource)
    await save_router(state, account_id, network.id, NetworkRouter("", 100, True, peer=peers[0].id))
    return Two(home, users[0], *peers)


async def wait(two: Two) -> None:
    async with two.home.state.change(two.home.account_id) as transaction:
        row = await transaction.session.get_one(UserRow, two.alice.id)
        row.pending_approval, row.blocked = True, True
        transaction.touch(users=[two.alice.id])


async def block(two: Two, *, blocked: bool = True) -> None:
    state, account_id = two.home.state, two.home.account_id
    await update_user(state, account_id, two.alice.id, role=Role.USER, auto_groups=[], blocked=blocked)


async def reject(two: Two) -> None:
    await wait(two)
    await reject_user(two.home.state, two.home.account_id, two.alice.id)


async def remove(two: Two) -> None:
    await delete_user(two.home.state, two.home.account_id, two.alice.id)


LEAVE: Final[dict[str, Callable[[Two], Awaitable[None]]]] = {
    "blocked": block,
    "pending": wait,
    "rejected": reject,
    "deleted": remove,
}


@pytest.mark.parametrize("how", LEAVE)
async def test_promise_8_peers_of_a_person_who_takes_no_part_are_in_nobodys_map(two: Two, how: str) -> None:
    """The key, the addresses, the rules, the routes and the names of the person's peers all go."""
    assert two.names_her()
    serial = two.his_map().Serial

    await LEAVE[how](two)

    assert not two.names_her()
    assert how == "pending" or two.his_map().Serial > serial


async def test_peers_come_back_with_their_person(two: Two) -> None:
    """Unblocking and approving bring back what blocking took."""
    await block(two)
    await block(two, blocked=False)
    assert two.names_her()

    await wait(two)
    await approve_user(two.home.state, two.home.account_id, two.alice.id)
    assert two.names_her()


async def test_a_peer_without_a_person_stands_for_itself(two: Two) -> None:
    """Machines that joined by a setup key have no owner who could be blocked."""
    account = two.home.snapshot
    assert admitted(replace(two.hers, user_id=None), account)
    assert refusal(None) is Refusal.USER_NOT_FOUND


@pytest.mark.parametrize("how", ["rejected", "deleted"])
async def test_the_keys_of_who_is_gone_are_free_again(two: Two, how: str) -> None:
    """A peer that went with its person is nowhere, and its key can be enrolled anew."""
    state, account_id = two.home.state, two.home.account_id

    await LEAVE[how](two)

    assert two.hers.id not in two.home.snapshot.peers
    assert two.hers.id not in two.home.snapshot.group_all.peers
    assert state.snapshots.by_peer_key(two.hers.key) is None
    again, _ = await create_stock_peer(state, account_id, name="again", user_id=None, public_key=two.hers.key)
    assert again.key == two.hers.key


@pytest.mark.parametrize("how", ["rejected", "deleted"])
async def test_sessions_end_with_their_person(two: Two, how: str) -> None:
    """Proxies are told that whatever session the person has is over."""
    await LEAVE[how](two)

    assert [one.subject for one in two.home.snapshot.revocations] == [two.alice.id]


async def expose(two: Two, *peers: Peer) -> Service:
    targets = tuple(Target(peer.id, TargetType.PEER, "http", 80, path=f"/{i}") for i, peer in enumerate(peers))
    given = replace(store_child.service(two.home.account_id), targets=targets)
    return await create_service(two.home.state, HOOKS, given, SENT)


@pytest.mark.parametrize("how", ["blocked", "pending"])
async def test_a_service_whose_target_takes_no_part_says_so(two: Two, proxy: Registration, how: str) -> None:
    """A service that leads to such a peer alone is withheld, with the reason; one with another target goes on."""
    alone, both = await expose(two, two.hers), None
    assert build(alone, two.home.snapshot, HOOKS).withheld == ""

    await LEAVE[how](two)

    reason = build(alone, two.home.snapshot, HOOKS).withheld
    assert two.hers.name in reason
    assert {"blocked": "user_blocked", "pending": "pending_approval"}[how] in reason
    await delete_service(two.home.state, two.home.account_id, alone.id)
    both = build(await expose(two, two.hers, two.his), two.home.snapshot, HOOKS)
    assert both.withheld == ""
    assert [path.target for path in both.mapping.path] == ["http://unknown/", f"http://{two.his.ip}/"]


@pytest.mark.parametrize("how", ["rejected", "deleted"])
async def test_a_person_whose_peer_a_service_targets_stays(two: Two, proxy: Registration, how: str) -> None:
    """Nothing goes, and the refusal names the service, as for the peer itself."""
    service = await expose(two, two.hers)

    with pytest.raises(PreconditionFailed, match=service.id):
        await LEAVE[how](two)
    with pytest.raises(PreconditionFailed, match=service.id):
        await delete_peer(two.home.state, two.home.account_id, two.hers.id)

    assert two.hers.id in two.home.snapshot.peers
    assert two.alice.id in two.home.snapshot.users


async def test_the_sweep_leaves_targets_of_services(home: Home, two: Two, proxy: Registration) -> None:
    """An ephemeral peer that a service leads to stays for as long as it does."""
    state, account_id = home.state, home.account_id
    _, plain = await create_setup_key(
        state, account_id, name="k", kind="reusable", expires_in=0, auto_groups=[], ephemeral=True
    )
    peers = []
    for name in ("targeted", "other"):
        key = base64.b64encode(bytes(PrivateKey.generate().public_key)).decode()
        peers.append(await enroll(state, plain, key=key, hostname=name, meta=PeerMeta()))
    async with state.change(account_id) as transaction:
        before = now() - timedelta(seconds=PROXY_ABSENT_SECONDS + 1)
        ids = [peer.id for peer in peers]
        await transaction.session.execute(update(PeerRow).where(PeerRow.id.in_(ids)).values(created_at=before))
        transaction.touch(peers=ids)
    service = await expose(two, peers[0])

    await sweep_ephemeral_peers(state)
    assert {peer.id for peer in peers} & home.snapshot.peers.keys() == {peers[0].id}

    await delete_service(state, account_id, service.id)
    await sweep_ephemeral_peers(state)
    assert not {peer.id for peer in peers} & home.snapshot.peers.keys()


async def test_a_policy_that_names_the_peer_itself_lets_it_in_no_more(two: Two) -> None:
    """A rule with a peer instead of a group is a rule all the same."""
    towards = allow("to her", two.home.snapshot.group_all.id, "", destinations=(), protocol="tcp", bidirectional=True)
    rule = replace(towards.rules[0], id="", destination_resource=Resource(two.hers.id, ResourceType.PEER))
    await create_policy(two.home.state, two.home.account_id, replace(towards, rules=(rule,)))
    assert two.names_her()
    await block(two)
    assert not two.names_her()


EDIT: Final = {"role": "user", "auto_groups": []}


async def test_what_is_not_sent_is_kept(two: Two, api: Api) -> None:
    """An update without `is_blocked` neither blocks nor unblocks."""
    await block(two)
    shown = await api.ok("PUT", f"/api/users/{two.alice.id}", EDIT)
    assert shown["is_blocked"] is True

    await block(two, blocked=False)
    assert (await api.ok("PUT", f"/api/users/{two.alice.id}", EDIT))["is_blocked"] is False


async def test_only_approving_lets_in_who_waits(two: Two, api: Api) -> None:
    """Editing groups lets nobody in; the event of an approval is an approval."""
    await wait(two)
    path = f"/api/users/{two.alice.id}"

    shown = await api.ok("PUT", path, EDIT)
    assert (shown["is_blocked"], shown["pending_approval"]) == (True, True)
    assert (await api.refused("PUT", path, {**EDIT, "is_blocked": False}))[0] == 412
    await api.ok("PUT", path, {**EDIT, "is_blocked": True})

    await api.ok("POST", f"{path}/approve")
    events = [one["activity_code"] for one in await api.ok("GET", "/api/events") if one["target_id"] == two.alice.id]
    assert "user.approve" in events
    assert not {"user.unblock", "user.block"} & set(events)
