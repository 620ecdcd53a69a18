"""Whoever may have lost access is named to the proxies at once, and nobody else is bothered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256

import pytest

from netbird_management.grpc.revalidations import AT_MOST
from netbird_management.model.accounts import Group, Peer, Role, User
from netbird_management.model.services import Service
from netbird_management.operations.groups import delete_group, update_group
from netbird_management.operations.peers import delete_peer
from netbird_management.operations.revocations import revoke
from netbird_management.operations.services import delete_service
from netbird_management.operations.users import delete_user, update_user
from netbird_wire.proxy_service_pb2 import ProxyCapabilities, SyncMappingsResponse
from tests.netbird_management.grpc.conftest import FakeProxy, Lab

OURS = ProxyCapabilities(supports_custom_ports=True, private=True, supports_private_service=True, claims=["private"])
NETBIRDS = ProxyCapabilities(supports_custom_ports=True, private=True, supports_private_service=True)


@dataclass
class House:
    """bob with a laptop in `engineering`, which may use `wiki`; a proxy that serves it."""

    lab: Lab
    bob: User
    laptop: Peer
    engineering: Group
    wiki: Service
    proxy: FakeProxy

    async def events(self) -> list[SyncMappingsResponse]:
        """All that came until a mark: a service that is made now."""
        await self.lab.service("mark")
        found: list[SyncMappingsResponse] = []
        while True:
            message = await self.proxy.next()
            if any(mapping.domain.startswith("mark.") for mapping in message.mapping):
                return found
            found.append(message)

    async def asked(self) -> list[tuple[str, str, str]]:
        told = [one for message in await self.events() for one in message.revalidations]
        assert all(one.account_id == self.lab.home.account_id for one in told)
        return [(one.user_id, one.peer_key, one.service_id) for one in told]


@pytest.fixture
async def house(lab: Lab) -> House:
    bob = await lab.user("bob@example.com")
    laptop = await lab.stock_peer("laptop", bob)
    engineering = await lab.group("engineering", laptop)
    wiki = await lab.service("wiki", engineering)
    proxy = lab.proxy(capabilities=OURS)
    first = (await proxy.connect())[0]
    assert {"revalidations", "revocations"} <= set(first.management_extensions)
    return House(lab, bob, laptop, engineering, wiki, proxy)


async def leaves_the_group(house: House) -> tuple[str, str, str]:
    await house.lab.set_members(house.engineering)
    return ("", house.laptop.key, "")


async def group_is_renamed(house: House) -> tuple[str, str, str]:
    # The upstream is told names.
    state, account = house.lab.home.state, house.lab.home.account_id
    await update_group(state, account, house.engineering.id, name="builders", peers=[house.laptop.id])
    return ("", house.laptop.key, "")


async def service_wants_others(house: House) -> tuple[str, str, str]:
    other = await house.lab.group("other")
    await house.lab.change(house.wiki, access_groups=(other.id,))
    return ("", "", house.wiki.id)


async def peer_is_deleted(house: House) -> tuple[str, str, str]:
    await delete_peer(house.lab.home.state, house.lab.home.account_id, house.laptop.id)
    return ("", house.laptop.key, "")


async def service_is_deleted(house: House) -> tuple[str, str, str]:
    await delete_service(house.lab.home.state, house.lab.home.account_id, house.wiki.id)
    return ("", "", house.wiki.id)


@pytest.mark.parametrize(
    "change", [leaves_the_group, group_is_renamed, service_wants_others, peer_is_deleted, service_is_deleted]
)
async def test_promise_8_proxies_are_told_whose_access_changed(
    house: House, change: Callable[[House], Awaitable[tuple[str, str, str]]]
) -> None:
    """Each way to lose access names whom it is about, to the proxies that may have let them in."""
    wanted = await change(house)

    assert wanted in await house.asked()


@pytest.mark.parametrize("way", ["blocked", "deleted"])
async def test_promise_8_a_user_who_is_shut_out_loses_sessions_too(house: House, way: str) -> None:
    """Blocked or deleted: asked about again by name, and every session that was given until then is revoked."""
    state, account = house.lab.home.state, house.lab.home.account_id
    if way == "blocked":
        await update_user(state, account, house.bob.id, role=Role.USER, auto_groups=[], blocked=True)
    else:
        await delete_user(state, account, house.bob.id)
    events = await house.events()

    assert house.bob.id in {one.user_id for message in events for one in message.revalidations}
    (revoked,) = [one for message in events for one in message.revocations]
    assert (revoked.account_id, revoked.subject, revoked.token_hash) == (account, house.bob.id, b"")
    assert revoked.not_before.seconds > 1_700_000_000


async def test_mappings_come_before_the_question(house: House) -> None:
    """The question is asked by what is in force: a proxy that asked before the mapping would let them stay."""
    other = await house.lab.group("other")
    await house.lab.change(house.wiki, access_groups=(other.id,))
    kinds = [bool(message.revalidations) for message in await house.events()]

    assert kinds == [False, True]


async def test_nobody_is_asked_about_for_nothing(house: House) -> None:
    """Someone new, a new service, or another target take nothing away; presence is nobody's business."""
    await house.lab.user("carol@example.com")
    await house.lab.group("empty")
    await house.lab.service("another")
    await house.lab.change(house.wiki, pass_host_header=True)

    assert await house.asked() == []


async def test_a_group_that_goes_takes_its_members_along(house: House) -> None:
    """Deleting a group that no service names asks about whoever was in it: upstreams are told groups."""
    spare = await house.lab.group("spare", house.laptop)
    await house.events()
    await delete_group(house.lab.home.state, house.lab.home.account_id, spare.id)
    mark = await house.lab.change(house.wiki, pass_host_header=True)
    message = await house.proxy.next()
    while not message.revalidations:
        message = await house.proxy.next()

    assert mark.id == house.wiki.id
    assert [one.peer_key for one in message.revalidations] == [house.laptop.key]


async def test_too_many_are_the_whole_account(house: House) -> None:
    """A message stays small whatever a commit did."""
    peers = [await house.lab.stock_peer(f"peer-{number}") for number in range(AT_MOST + 1)]
    await house.lab.set_members(house.engineering, *peers)

    assert (await house.asked())[-1] == ("", "", "")


async def test_netbirds_proxies_are_not_sent_what_they_do_not_know(house: House) -> None:
    """A proxy that names no claims gets mappings, and no message that would be empty to it."""
    theirs = house.lab.proxy(proxy_id="theirs", capabilities=NETBIRDS)
    await theirs.connect()
    await house.lab.set_members(house.engineering)
    await house.lab.service("mark")
    message = await theirs.next()

    assert [mapping.domain for mapping in message.mapping] == ["mark.px.test"]


async def test_promise_8_revocations_stand_in_every_snapshot(house: House) -> None:
    """A proxy that was away hears of them with the first mappings; one token, or all of a subject."""
    token = sha256(b"a session").digest()
    async with house.lab.home.state.change(house.lab.home.account_id) as transaction:
        await revoke(transaction, subject=house.bob.id)
    async with house.lab.home.state.change(house.lab.home.account_id) as transaction:
        await revoke(transaction, token_hash=token)
    first = (await house.lab.proxy(proxy_id="late", capabilities=OURS).connect())[0]

    assert [(one.subject, one.token_hash) for one in first.revocations] == [(house.bob.id, b""), ("", token)]


async def test_a_revocation_names_one_thing(house: House) -> None:
    """Neither or both is a mistake, and nothing is written."""
    for wrong in ({}, {"subject": "bob", "token_hash": b"x"}):
        with pytest.raises(ValueError, match="a subject or a token"):
            async with house.lab.home.state.change(house.lab.home.account_id) as transaction:
                await revoke(transaction, **wrong)  # type: ignore[arg-type]

    assert await house.events() == []
