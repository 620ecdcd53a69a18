"""Machines that join by a setup key."""

from datetime import timedelta
from typing import Any

import grpc.aio
import pytest
from sqlalchemy import update

from netbird_management.model.clock import now
from netbird_management.operations.setup_keys import create_setup_key, setup_keys_of
from netbird_management.store.models import SetupKeyRow
from tests.netbird_management.grpc.conftest import Lab


async def _key(lab: Lab, **fields: Any) -> str:
    given = {"name": "k", "kind": "reusable", "expires_in": 0, "auto_groups": [], **fields}
    _, plain = await create_setup_key(lab.home.state, lab.home.account_id, **given)
    return plain


async def test_a_machine_joins_by_a_key(lab: Lab) -> None:
    """It is in All and the key's groups, has its address at once, logs in again without the key, and syncs."""
    group = await lab.group("servers")
    plain = await _key(lab, auto_groups=[group.id])
    agent = lab.peer()
    first = await agent.login(setupKey=plain.lower())
    found = lab.home.state.snapshots.by_peer_key(agent.key)
    assert found is not None
    account, peer = found
    assert [held.name for held in account.groups_of(peer.id)] == ["All", "servers"]
    assert peer.name == "node"
    assert first.peerConfig.address == f"{peer.ip}/16"
    assert (await agent.login()).peerConfig == first.peerConfig
    assert (await agent.sync()).NetworkMap.peerConfig.address == first.peerConfig.address
    (key,) = await setup_keys_of(lab.home.state, lab.home.account_id)
    assert (key.used_times, key.last_used is not None) == (1, True)


async def test_a_key_that_is_used_up_expired_revoked_or_unknown_lets_nobody_in(lab: Lab) -> None:
    """The caller is told nothing but that it is not good."""
    plain = await _key(lab, kind="one-off")
    await lab.peer().login(setupKey=plain)
    expired, revoked = await _key(lab, expires_in=60), await _key(lab)
    async with lab.home.state.write() as session:
        later = await setup_keys_of(lab.home.state, lab.home.account_id)
        past = update(SetupKeyRow).where(SetupKeyRow.id == later[1].id).values(expires_at=now() - timedelta(seconds=1))
        await session.execute(past)
        await session.execute(update(SetupKeyRow).where(SetupKeyRow.id == later[2].id).values(revoked=True))
    for bad in (plain, expired, revoked, "NOPE"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lab.peer().login(setupKey=bad)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_known_machine_needs_no_key(lab: Lab) -> None:
    """A key that is shown by a peer that is known already is neither judged nor used."""
    plain = await _key(lab, kind="one-off")
    agent = lab.peer()
    await agent.login(setupKey=plain)
    await agent.login(setupKey=plain)
    await agent.login(setupKey="NOPE")
    assert (await setup_keys_of(lab.home.state, lab.home.account_id))[0].used_times == 1


async def test_extra_labels_are_names_of_the_peer(lab: Lab) -> None:
    """In the account's zone, each with the peer's addresses, for everybody who may reach it; several peers may share
    one."""
    plain = await _key(lab, allow_extra_dns_labels=True)
    first, second, viewer = lab.peer(), lab.peer(), lab.peer()
    await first.login(setupKey=plain, dnsLabels=["Web", "db.test", "web"])
    await second.login(setupKey=plain, dnsLabels=["web"])
    await viewer.login(setupKey=plain)
    [zone] = (await viewer.sync()).NetworkMap.DNSConfig.CustomZones
    addresses: dict[str, set[str]] = {}
    for record in zone.Records:
        if record.Type == 1:
            addresses.setdefault(record.Name, set()).add(record.RData)
    peers = [lab.home.state.snapshots.by_peer_key(agent.key) for agent in (first, second)]
    ips = [str(match[1].ip) for match in peers if match is not None]

    assert addresses["web.netbird.selfhosted"] == set(ips)
    assert addresses["db.test.netbird.selfhosted"] == {ips[0]}
    assert peers[0] is not None
    assert peers[0][1].extra_dns_labels == ("db.test", "web")


async def test_labels_of_a_peer_stay(lab: Lab) -> None:
    """Later logins may repeat them, as agents do, or leave them out; others are refused and not dropped in silence."""
    plain = await _key(lab, allow_extra_dns_labels=True)
    agent = lab.peer()
    await agent.login(setupKey=plain, dnsLabels=["web", "db"])
    for labels in (["db", "WEB"], []):
        await agent.login(dnsLabels=labels)
    for labels in (["web"], ["web", "db", "wiki"]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await agent.login(dnsLabels=labels)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    match = lab.home.state.snapshots.by_peer_key(agent.key)
    assert match is not None
    assert match[1].extra_dns_labels == ("db", "web")


async def test_a_key_that_forbids_labels_is_not_used_with_them(lab: Lab) -> None:
    """FAILED_PRECONDITION with NetBird's sentence; nothing is made, and the key is not counted."""
    plain = await _key(lab)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lab.peer().login(setupKey=plain, dnsLabels=["web"])

    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "setup key doesn't allow extra DNS labels"
    assert not lab.home.snapshot.peers
    assert [key.used_times for key in await setup_keys_of(lab.home.state, lab.home.account_id)] == [0]


@pytest.mark.parametrize(
    "labels", [["-a"], ["a_b"], ["a..b"], [""], ["*.a"], ["a."], ["ä"], ["a" * 64], [f"l{i}" for i in range(33)]]
)
async def test_labels_that_are_no_names_are_refused(lab: Lab, labels: list[str]) -> None:
    """Each is a name that everybody in the account gets; their number is bounded."""
    plain = await _key(lab, allow_extra_dns_labels=True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lab.peer().login(setupKey=plain, dnsLabels=labels)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not lab.home.snapshot.peers


async def test_no_peer_takes_anothers_name(lab: Lab) -> None:
    """Neither by an extra label, nor as a host name that is another's extra label."""
    plain = await _key(lab, allow_extra_dns_labels=True)
    server, impostor, later = lab.peer(), lab.peer(), lab.peer()
    server.meta.hostname = "wiki"
    later.meta.hostname = "db"
    await server.login(setupKey=plain, dnsLabels=["db"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await impostor.login(setupKey=plain, dnsLabels=["wiki"])
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await later.login(setupKey=plain)
    match = lab.home.state.snapshots.by_peer_key(later.key)
    assert match is not None
    assert match[1].dns_label.startswith("db-")
