"""Strangers, hostile peers and failing parts: each costs itself a path at most, and no other peer anything."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterable
from dataclasses import replace

import ifaddr
import pytest

from netbird_overlay.signal.messages import Offer, RemoteCandidate
from netbird_overlay.stun.messages import Kind, Message, encode
from netbird_overlay.testing import LOOPBACK, Accepting
from tests.netbird_overlay.paths.house import (
    PORT,
    acquaint,
    couple,
    exchange,
    ordered_keys,
    reported,
    resident,
    say,
    servers,
)
from tests.netbird_overlay.paths.links import negotiation


async def test_messages_of_strangers_are_dropped_unopened() -> None:
    async with servers() as group, couple(group) as (a, b, accepting), resident("100.64.0.66") as stranger:
        await say(group, stranger, a.key, Offer(negotiation(b"s1s1s")))
        await a.until(lambda: a.paths.totals().get("signal_strangers", 0) == 1)
        assert a.kind(stranger) == "none"
        await exchange(a, b, accepting)


async def test_messages_of_a_peer_that_was_removed_are_dropped() -> None:
    async with servers() as group, couple(group) as (a, b, _):
        a.paths.set_peers([])
        await say(group, b, a.key, Offer(negotiation(b"s1s1s")))
        await a.until(lambda: a.paths.totals().get("signal_strangers", 0) == 1)


@pytest.mark.parametrize("ice", [False, True])
async def test_a_flood_of_a_peers_offers_is_cut_and_leaves_others_alone(ice: bool) -> None:
    async with servers() as group, couple(group, ice=ice) as (a, b, accepting), resident("100.64.0.3") as flooder:
        flooder.paths.configure(group.configuration())
        acquaint(a, b, flooder)
        offers = [Offer(negotiation(secrets.token_bytes(5), relay=group.relays["relay"].url)) for _ in range(150)]
        await say(group, flooder, a.key, *offers)
        await a.until(lambda: a.paths.counters["messages_over_rate"] > 0)
        await exchange(a, b, accepting)
        assert a.kind(b) == ("ice" if ice else "relay")


async def test_candidates_that_are_none_are_counted() -> None:
    async with servers() as group, couple(group, ice=True) as (a, b, accepting):
        await say(group, b, a.key, RemoteCandidate("nonsense"), RemoteCandidate("1 1 udp 1 host.example 1 typ host"))
        await a.until(lambda: a.paths.totals().get("ice_bad_candidates", 0) == 2)
        await exchange(a, b, accepting)


@pytest.mark.parametrize("server", ["rel://", "http://127.0.0.1:1", "rel://[::1", "rel://127.0.0.1:1", "x" * 2000])
async def test_a_relay_that_cannot_be_one_costs_its_peer_the_path_only(server: str) -> None:
    follower, controller = ordered_keys()
    async with (
        servers() as group,
        resident("100.64.0.1", private_key=follower) as a,
        resident("100.64.0.2") as b,
        resident("100.64.0.66", private_key=controller) as liar,
    ):
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        acquaint(a, b, liar)
        await a.until_home()
        await say(group, liar, a.key, Offer(negotiation(b"", relay=server)))
        await exchange(a, b, accepting)
        assert a.kind(liar) == "none"


async def test_a_peer_cannot_make_us_call_the_metadata_service() -> None:
    follower, controller = ordered_keys()
    async with (
        servers() as group,
        resident("100.64.0.1", private_key=follower) as a,
        resident("100.64.0.66", private_key=controller) as liar,
    ):
        a.paths.configure(group.configuration())
        acquaint(a, liar)
        await a.until_home()
        await say(group, liar, a.key, Offer(negotiation(b"", relay="rel://169.254.169.254:80")))
        await a.until(lambda: a.paths.counters["relays_refused"] == 1)
        assert a.kind(liar) == "none"


async def test_a_relay_that_never_answers_leaves_the_direct_path() -> None:
    async with (
        servers(scripted=True) as group,
        resident("100.64.0.1", ice=True) as a,
        resident("100.64.0.2", ice=True) as b,
    ):
        group.scripted["relay"].mute = True
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        acquaint(a, b)
        await exchange(a, b, accepting)
        assert a.kind(b) == "ice"


async def test_datagrams_of_strangers_change_no_path() -> None:
    """Punch packets, STUN of no session, and answers to no question."""
    async with servers() as group, couple(group, ice=True) as (a, b, accepting):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            to = (LOOPBACK, a.node.driver.local_port)
            stranger.sendto(b"nb", to)
            for kind in Kind:
                stranger.sendto(encode(Message(kind, secrets.token_bytes(12), username="who:ever"), "password"), to)
            await a.until(lambda: a.paths.totals().get("ice_strays_of_no_session", 0) == len(Kind))
        await exchange(a, b, accepting)
        assert a.kind(b) == b.kind(a) == "ice"
        assert a.node.driver.engine.counters()["malformed"] >= 1


async def test_a_link_that_fails_is_replaced_and_others_notice_nothing() -> None:
    looks = 0

    def adapters() -> Iterable[ifaddr.Adapter]:
        nonlocal looks
        looks += 1
        if looks == 2:  # the first look is for changes of the addresses
            raise RuntimeError("a defect")
        return ifaddr.get_adapters()

    async with (
        servers() as group,
        resident("100.64.0.1", ice=True, adapters=adapters) as a,
        resident("100.64.0.2", ice=True) as b,
        resident("100.64.0.3", ice=True) as c,
    ):
        for home in (a, b, c):
            home.paths.configure(group.configuration())
        with reported() as errors:
            acquaint(a, b)
            await a.until(lambda: bool(errors))
            acquaint(a, c, b)
            await a.until(lambda: a.kind(c) == "ice")
            # A link that lost some of its effects in the middle would be in no state of its own rules.
            assert [(each["message"], str(each["exception"])) for each in errors] == [
                ("paths: a link failed", "a defect")
            ]
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        await exchange(a, b, accepting)


async def test_interfaces_that_cannot_be_listed_leave_the_relay() -> None:
    def adapters() -> Iterable[ifaddr.Adapter]:
        raise OSError("not permitted")

    async with (
        servers() as group,
        resident("100.64.0.1", ice=True, adapters=adapters) as a,
        resident("100.64.0.2") as b,
    ):
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        acquaint(a, b)
        await exchange(a, b, accepting)


async def test_a_callback_that_raises_is_reported_and_costs_no_path() -> None:
    def fail(key: bytes) -> None:
        raise RuntimeError("a defect of the owner")

    async with servers() as group, resident("100.64.0.1", on_change=fail) as a, resident("100.64.0.2") as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        with reported() as errors:
            acquaint(a, b)
            await exchange(a, b, accepting)
            assert {str(context["exception"]) for context in errors} == {"a defect of the owner"}


async def test_a_peer_cannot_take_the_path_of_another() -> None:
    """The relay's frames name their sender by the relay's word only; the engine's keys decide."""
    async with servers() as group, couple(group) as (a, b, accepting), resident("100.64.0.66") as c:
        c.paths.configure(group.configuration())
        acquaint(a, b, c)
        await a.until(lambda: a.kind(c) == "relay")
        before = a.paths.state(b.key)
        await say(group, c, a.key, Offer(replace(negotiation(b"", relay=group.relays["relay"].url))))
        await exchange(a, b, accepting)
        assert a.paths.state(b.key).relay == before.relay
