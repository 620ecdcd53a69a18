"""Relays that peers name: dialed, bounded, swept, and recognized when they are relays that we have already."""

from __future__ import annotations

import pytest

from netbird_overlay.relay.effects import Announce, Dial, HangUp, HomeChanged, Offline, Online
from netbird_overlay.relay.links import MAX_FOREIGN
from netbird_wire.relay import peer_id
from tests.netbird_overlay.relay.choice import (
    ALICE,
    BOB,
    HOME,
    HOME_IP,
    OTHER,
    at,
    at_home,
    configured,
    dials,
)


def test_a_foreign_relay_is_dialed_once_by_its_address_first() -> None:
    state = at_home()
    state.open(ALICE, OTHER, bytes([192, 0, 2, 9]), 1.0)
    state.open(BOB, OTHER, b"", 1.0)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    assert (dial.url.text, dial.address) == (OTHER, "192.0.2.9")
    state.authenticated(dial.link, OTHER, b"", 2.0)
    assert state.take() == [Announce(dial.link, (peer_id(ALICE), peer_id(BOB)), True)]
    assert state.home == HOME


@pytest.mark.parametrize("address", [b"", b"abc", bytes(17)])
def test_a_foreign_relays_address_that_is_none_is_ignored(address: bytes) -> None:
    state = at_home()
    state.open(ALICE, OTHER, address, 1.0)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    assert dial.address == ""


def test_a_foreign_relay_that_cannot_be_reached_leaves_its_peers_offline() -> None:
    state = at_home()
    state.open(ALICE, OTHER, b"", 1.0)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    state.lost(dial.link, 2.0)
    assert state.take() == [Offline(ALICE, OTHER)]
    assert state.home == HOME


def test_an_unused_foreign_link_is_swept() -> None:
    state = at_home()
    state.open(ALICE, OTHER, b"", 1.0)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    state.authenticated(dial.link, OTHER, b"", 2.0)
    state.take()
    state.close(ALICE, OTHER)
    state.take()
    state.open(BOB, "rels://young.example", b"", 57.0)
    state.close(BOB, "rels://young.example")
    state.take()
    assert at(state, 61.0) == [HangUp(dial.link)]
    assert at(state, 120.0) == []
    assert at(state, 121.0) == [HangUp(dial.link + 1)]
    assert state.deadline == float("inf")


@pytest.mark.parametrize(
    "server", ["", "rel://plain.example", "https://other.example", "rels://user@other.example", "rels://x/relay"]
)
def test_a_server_that_must_not_be_dialed_leaves_the_peer_offline(server: str) -> None:
    state = at_home()
    state.open(ALICE, server, b"", 1.0)
    assert state.take() == [Offline(ALICE, server)]
    assert state.counters["opens_refused"] == 1


def test_a_token_crosses_the_network_in_the_clear_only_where_the_configuration_has_such_a_relay() -> None:
    state, (number,) = configured("rel://home.example")
    state.authenticated(number, "rel://home.example", HOME_IP, 0.0)
    state.take()
    state.open(ALICE, "rel://plain.example", b"", 1.0)
    assert dials(state.take()) == ["rel://plain.example"]


def test_foreign_links_are_bounded_and_unused_ones_make_room() -> None:
    state = at_home()
    for number in range(MAX_FOREIGN):
        state.open(ALICE, f"rels://relay{number}.example", b"", 1.0)
    assert len(dials(state.take())) == MAX_FOREIGN
    state.open(BOB, OTHER, b"", 1.0)
    assert state.take() == [Offline(BOB, OTHER)]
    state.close(ALICE, "rels://relay3.example")
    state.open(BOB, OTHER, b"", 1.0)
    hang_up, dial = state.take()
    assert hang_up == HangUp(5)
    assert isinstance(dial, Dial)


def test_a_foreign_url_that_is_home_is_an_alias_from_then_on() -> None:
    """Two connections with one id would replace each other at that relay for ever."""
    state = at_home()
    alias = "rels://alias.example"
    state.open(ALICE, alias, b"", 1.0)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    assert dial.foreign
    state.authenticated(dial.link, HOME, HOME_IP, 2.0)
    assert state.take() == [HangUp(dial.link), Offline(ALICE, alias)]
    state.lost(1, 20.0)  # replaced by the relay
    (again,) = [effect for effect in at(state, 21.5) + state.take() if isinstance(effect, Dial)]
    state.authenticated(again.link, HOME, HOME_IP, 22.0)
    state.take()
    state.open(ALICE, alias, b"", 23.0)
    assert state.take() == [Announce(again.link, (peer_id(ALICE),), True)]
    state.online(again.link, (peer_id(ALICE),), 23.0)
    assert state.take() == [Online(ALICE, alias, ())]
    assert state.route(ALICE, alias) == (again.link, peer_id(ALICE))


def test_aliases_that_a_peer_makes_up_cut_the_home_link_at_most_once_a_minute() -> None:
    state = at_home()
    cuts = 0
    for number in range(600):
        now = float(number)
        state.open(ALICE, f"rels://alias{number}.example", b"", now)
        for effect in state.take():
            if isinstance(effect, Dial) and effect.foreign:
                state.authenticated(effect.link, HOME, HOME_IP, now)
                cuts += 1
    assert cuts == 10


def test_two_names_of_one_foreign_relay_are_one_link() -> None:
    state = at_home()
    state.open(ALICE, OTHER, b"", 1.0)
    state.open(BOB, "rels://alias.example", b"", 1.0)
    first, second = (effect.link for effect in state.take() if isinstance(effect, Dial))
    state.authenticated(first, OTHER, b"", 2.0)
    state.take()
    state.leads_to(second, first)
    assert state.take() == [HangUp(second), Offline(BOB, "rels://alias.example")]
    state.open(BOB, "rels://alias.example", b"", 3.0)
    assert state.take() == [Announce(first, (peer_id(BOB),), True)]


@pytest.mark.parametrize("spelling", ["rels://HOME.example", "rels://home.example:443", "rels://home.example/"])
def test_other_spellings_of_the_home_relay_are_home(spelling: str) -> None:
    state = at_home()
    state.open(ALICE, spelling, b"", 1.0)
    assert state.take() == [Announce(1, (peer_id(ALICE),), True)]
    state.online(1, (peer_id(ALICE),), 1.0)
    assert state.take() == [Online(ALICE, spelling, ())]
    state.close(ALICE, spelling)
    assert state.take() == [Announce(1, (peer_id(ALICE),), False)]


def test_a_peer_that_is_opened_by_another_name_of_its_relay_has_its_path_there() -> None:
    state = at_home()
    other_name = "rels://home.example:443"
    state.open(ALICE, HOME, b"", 1.0)
    state.online(1, (peer_id(ALICE),), 1.0)
    state.take()
    state.open(ALICE, other_name, b"", 2.0)
    assert state.take() == [Offline(ALICE, HOME), Online(ALICE, other_name, ())]
    state.close(ALICE, HOME)
    assert state.take() == []
    assert state.arrived(1, peer_id(ALICE), [b"x"], 3.0) == (ALICE, other_name)
    state.close(ALICE, other_name)
    assert state.take() == [Announce(1, (peer_id(ALICE),), False)]


def test_the_url_by_which_home_was_dialed_is_home() -> None:
    state, (number,) = configured("rels://all.example")
    state.authenticated(number, HOME, HOME_IP, 0.0)
    state.take()
    state.open(ALICE, "rels://all.example", b"", 1.0)
    assert state.take() == [Announce(number, (peer_id(ALICE),), True)]


def test_a_relay_that_calls_itself_by_no_url_is_named_as_it_was_dialed() -> None:
    state, (number,) = configured(HOME)
    state.authenticated(number, "nonsense", HOME_IP, 0.0)
    assert state.home == HOME


def test_a_home_at_a_relay_with_a_foreign_link_takes_its_place() -> None:
    state, (number, _) = configured(HOME, OTHER)
    state.authenticated(number, HOME, HOME_IP, 0.0)
    state.open(ALICE, OTHER, b"", 1.0)
    foreign = next(effect.link for effect in state.take() if isinstance(effect, Dial) and effect.link > 2)
    state.authenticated(foreign, OTHER, b"", 2.0)
    state.lost(number, 3.0)
    second = next(effect for effect in at(state, 6.0) if isinstance(effect, Dial) and effect.url.text == OTHER)
    state.authenticated(second.link, OTHER, b"", 7.0)
    assert {HangUp(foreign), Offline(ALICE, OTHER), HomeChanged()} <= set(state.take())
