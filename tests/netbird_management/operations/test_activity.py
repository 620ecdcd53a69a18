"""Events: written with the change, numbered like it, told to people."""

from pathlib import Path
from typing import Any

import pytest

import netbird_management
from netbird_management.model.activity import SENTENCES, Activity
from netbird_management.model.ids import GroupId
from netbird_management.operations.events import events_of
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from tests.netbird_management.conftest import Api, Home


async def _codes(home: Home) -> list[str]:
    return [event.activity.value for event in await events_of(home.state, home.account_id)]


async def test_each_change_has_its_number(home: Home) -> None:
    """Numbers rise with each change, also with one that nobody is told of."""
    await create_group(home.state, home.account_id, name="one")
    await create_stock_peer(home.state, home.account_id, name="p", user_id=None)
    await create_group(home.state, home.account_id, name="two")
    events = await events_of(home.state, home.account_id)
    assert [event.activity for event in events] == [
        Activity.GROUP_ADD,
        Activity.PEER_ADD,
        Activity.GROUP_ADD,
        Activity.ACCOUNT_CREATE,
    ]
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers), reverse=True)
    assert events[0].details == {"name": "two"}


async def test_a_change_that_fails_leaves_no_event(home: Home) -> None:
    """What is rolled back is not told either."""
    before = await _codes(home)

    async def fail() -> None:
        async with home.state.change(home.account_id) as transaction:
            transaction.record(Activity.GROUP_ADD, "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await _codes(home) == before


async def test_the_api_names_who_did_it(api: Api) -> None:
    """The event has its code and sentence, and the caller with name and address."""
    group: dict[str, Any] = await api.ok("POST", "/api/groups", {"name": "engineering"})
    for path in ("/api/events", "/api/events/audit"):
        event = (await api.ok("GET", path))[0]
        assert (event["activity_code"], event["activity"]) == ("group.add", "Group created")
        assert (event["target_id"], event["meta"]) == (group["id"], {"name": "engineering"})
        owner = api.home.owner
        assert (event["initiator_id"], event["initiator_email"], event["initiator_name"]) == (
            owner.id,
            owner.email,
            owner.name,
        )


async def test_the_number_is_not_lost_with_a_group(api: Api) -> None:
    """An event outlives what it is about."""
    group = await api.ok("POST", "/api/groups", {"name": "engineering"})
    await api.ok("DELETE", f"/api/groups/{group['id']}")
    assert GroupId(group["id"]) not in api.home.snapshot.groups
    assert (await _codes(api.home))[:2] == ["group.delete", "group.add"]


async def test_tokens_of_people_are_told(api: Api) -> None:
    """Who made one, for whom, and that it went; never the token."""
    owner = api.home.owner
    path = f"/api/users/{owner.id}/tokens"
    made = await api.ok("POST", path, {"name": "laptop", "expires_in": 1})
    await api.ok("DELETE", f"{path}/{made['personal_access_token']['id']}")
    events = await api.ok("GET", "/api/events")
    told = [(one["activity_code"], one["initiator_id"], one["target_id"], one["meta"]) for one in events[:2]]
    assert told == [
        ("personal.access.token.delete", owner.id, owner.id, {"name": "laptop"}),
        ("personal.access.token.create", owner.id, owner.id, {"name": "laptop"}),
    ]


async def test_ones_own_peer_is_told_apart(api: Api) -> None:
    """Somebody's own machine, and one that an admin makes for another."""
    await api.ok("POST", "/api/peers", {"name": "mine", "user_id": api.home.owner.id})
    await api.ok("POST", "/api/peers", {"name": "a sensor"})
    assert (await _codes(api.home))[:2] == ["peer.add", "user.peer.add"]


def test_every_activity_is_recorded_somewhere() -> None:
    """A code that nobody writes would promise an event that never comes."""
    code = "".join(
        path.read_text()
        for path in Path(netbird_management.__file__).parent.rglob("*.py")
        if path.name != "activity.py"
    )
    assert [activity.name for activity in Activity if f"Activity.{activity.name}" not in code] == []


def test_every_activity_has_a_sentence() -> None:
    """Nobody reads a bare code."""
    assert SENTENCES.keys() == set(Activity)
