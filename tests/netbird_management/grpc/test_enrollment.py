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
