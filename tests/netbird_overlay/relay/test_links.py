"""Choice of relays: home, foreign, lost, changed; peers opened and announced. Virtual time; no connection is made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.relay.effects import Announce, Dial, HangUp, HomeChanged, Offline, Online
from netbird_overlay.relay.links import EARLY_SECONDS, MAX_EARLY
from netbird_wire.relay import peer_id
from netbird_wire.relay_tokens import relay_token
from tests.netbird_overlay.relay.choice import (
    ALICE,
    BOB,
    HOME,
    HOME_IP,
    OTHER,
    TOKEN,
    at,
    at_home,
    configured,
    dials,
    links,
)

# The home relay -------------------------------------------------------------------------------------------------------


def test_the_first_relay_that_accepts_is_home_and_the_other_tries_end() -> None:
    state, (first, second) = configured(OTHER, HOME)
    state.authenticated(second, HOME, HOME_IP, 1.0)
    assert (state.home, state.home_ip) == (HOME, HOME_IP)
    assert state.take() == [HangUp(first), HomeChanged()]
    state.authenticated(first, OTHER, HOME_IP, 1.0)
    assert state.home == HOME
    assert state.take() == []


def test_at_most_seven_relays_are_tried_at_once() -> None:
    urls = [f"rels://relay{number}.example" for number in range(9)]
    state, numbers = configured(*urls)
    assert len(numbers) == 7
    state.lost(numbers[0], 1.0)
    assert dials(state.take()) == [urls[7]]


def test_a_search_ends_after_30_seconds_and_is_repeated_ever_less_often() -> None:
    state, numbers = configured(HOME, OTHER)
    assert at(state, 29.9) == []
    assert at(state, 30.0) == [HangUp(number) for number in numbers]
    assert state.deadline == 32.0
    assert dials(at(state, 32.0)) == [HOME, OTHER]
    now, waits = 32.0, []
    for _ in range(6):
        at(state, now + 30.0)
        waits.append(state.deadline - now - 30.0)
        now = state.deadline
        at(state, now)
    assert waits == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_a_relay_that_refuses_everything_is_tried_after_the_same_waits() -> None:
    state, (number,) = configured(HOME)
    state.lost(number, 1.0)
    assert state.deadline == 3.0
    assert dials(at(state, 3.0)) == [HOME]


def test_a_lost_home_is_dialed_again_alone_and_then_all() -> None:
    state, numbers = configured(OTHER, HOME)
    state.authenticated(numbers[1], HOME, HOME_IP, 0.0)
    state.take()
    state.lost(numbers[1], 100.0)
    assert state.take() == [HomeChanged()]
    assert (state.home, state.home_ip) == ("", b"")
    assert at(state, 101.4) == []
    (again,) = at(state, 101.5)
    assert isinstance(again, Dial)
    assert again.url.text == HOME
    state.lost(again.link, 102.0)
    assert dials(at(state, 104.0)) == [OTHER, HOME]


def test_a_home_that_left_the_configuration_is_kept_but_not_dialed_again() -> None:
    state = at_home()
    state.configure([OTHER], TOKEN, 50.0)
    assert state.take() == []
    assert state.home == HOME
    state.lost(1, 100.0)
    assert dials(at(state, 101.5)) == [OTHER]


def test_a_relay_that_accepts_and_ends_is_dialed_ever_less_often() -> None:
    state, (number,) = configured(HOME)
    now, waits = 0.0, []
    for _ in range(4):
        state.authenticated(number, HOME, HOME_IP, now)
        state.lost(number, now + 0.1)
        state.take()
        waits.append(round(state.deadline - now - 0.1, 6))
        now = state.deadline
        (dial,) = [effect for effect in at(state, now) if isinstance(effect, Dial)]
        number = dial.link
    assert waits == [2.0, 4.0, 8.0, 16.0]


def test_other_urls_or_a_new_token_are_tried_at_once_while_there_is_no_home() -> None:
    state, (number,) = configured(HOME)
    state.lost(number, 1.0)
    state.configure([OTHER], TOKEN, 1.5)
    assert dials(state.take()) == [OTHER]
    state.configure([OTHER], TOKEN, 2.0)
    assert state.take() == []
    state.configure([OTHER], relay_token("secret", 1_950_000_000), 2.5)
    assert state.take() == []  # the dial under way goes on
    state.lost(2, 3.0)
    state.configure([OTHER], relay_token("secret", 2_000_000_000), 3.5)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    assert dial.token.expires_at == 2_000_000_000


def test_a_new_token_leaves_the_home_link_alone_and_is_used_by_the_next_dial() -> None:
    state = at_home()
    state.configure([HOME], relay_token("secret", 2_000_000_000), 50.0)
    assert state.take() == []
    state.open(ALICE, OTHER, b"", 51.0)
    (dial,) = state.take()
    assert isinstance(dial, Dial)
    assert dial.token.expires_at == 2_000_000_000


def test_no_urls_switch_relays_off() -> None:
    state = at_home()
    state.open(ALICE, HOME, b"", 1.0)
    state.open(BOB, OTHER, b"", 1.0)
    state.take()
    state.configure([], None, 2.0)
    effects = state.take()
    assert {Offline(ALICE, HOME), Offline(BOB, OTHER), HomeChanged(), HangUp(1), HangUp(2)} == set(effects)
    assert state.home == ""
    assert state.deadline == float("inf")
    state.open(ALICE, HOME, b"", 3.0)
    assert state.take() == [Offline(ALICE, HOME)]
    state.configure([HOME], None, 4.0)
    assert dials(state.take()) == [HOME]


def test_without_a_token_nothing_is_dialed() -> None:
    state = links()
    state.configure([HOME], None, 0.0)
    assert state.take() == []
    state.configure([HOME], TOKEN, 1.0)
    assert dials(state.take()) == [HOME]


def test_wrong_and_repeated_urls_are_left_out() -> None:
    state, numbers = configured(HOME, HOME, "https://home.example", "")
    assert len(numbers) == 1
    assert state.counters["bad_urls"] == 2


# Peers ----------------------------------------------------------------------------------------------------------------


def test_a_peer_is_subscribed_at_home_and_has_a_path_when_it_is_online() -> None:
    state = at_home()
    state.open(ALICE, HOME, b"", 1.0)
    assert state.take() == [Announce(1, (peer_id(ALICE),), True)]
    assert state.route(ALICE, HOME) is None
    state.online(1, (peer_id(BOB), peer_id(ALICE), peer_id(ALICE)), 2.0)
    assert state.take() == [Online(ALICE, HOME, ())]
    assert state.route(ALICE, HOME) == (1, peer_id(ALICE))
    assert state.arrived(1, peer_id(ALICE), [b"x"], 3.0) == (ALICE, HOME)
    state.open(ALICE, HOME, b"", 4.0)
    assert state.take() == []


def test_a_peer_that_stays_away_is_given_up_after_30_seconds() -> None:
    state = at_home()
    state.open(ALICE, HOME, b"", 1.0)
    state.open(BOB, HOME, b"", 2.0)
    state.take()
    assert state.deadline == 31.0
    assert at(state, 31.0) == [Offline(ALICE, HOME), Announce(1, (peer_id(ALICE),), False)]
    state.online(1, (peer_id(ALICE), peer_id(BOB)), 31.0)
    assert state.take() == [Online(BOB, HOME, ())]


def test_a_peer_that_went_offline_must_be_opened_again() -> None:
    state = at_home()
    state.open(ALICE, HOME, b"", 1.0)
    state.online(1, (peer_id(ALICE),), 1.0)
    state.take()
    state.offline(1, (peer_id(BOB), peer_id(ALICE)))
    assert state.take() == [Offline(ALICE, HOME), Announce(1, (peer_id(ALICE),), False)]
    assert state.route(ALICE, HOME) is None
    state.open(ALICE, HOME, b"", 2.0)
    assert state.take() == [Announce(1, (peer_id(ALICE),), True)]


def test_a_closed_peer_is_unsubscribed_and_nothing_is_reported_of_it() -> None:
    state = at_home()
    state.open(ALICE, HOME, b"", 1.0)
    state.close(ALICE, HOME)
    state.close(ALICE, HOME)
    state.close(BOB, OTHER)
    state.take()
    state.online(1, (peer_id(ALICE),), 2.0)
    assert state.take() == []


def test_all_paths_of_a_lost_link_are_gone() -> None:
    state = at_home()
    for key in (ALICE, BOB):
        state.open(key, HOME, b"", 1.0)
    state.online(1, (peer_id(ALICE),), 1.0)
    state.take()
    state.lost(1, 2.0)
    assert state.take() == [Offline(ALICE, HOME), Offline(BOB, HOME), HomeChanged()]


# Early datagrams ------------------------------------------------------------------------------------------------------


def test_the_first_datagram_of_a_quick_peer_waits_for_its_path() -> None:
    state = at_home()
    assert state.arrived(1, peer_id(ALICE), [b"first", b"second"], 1.0) is None
    assert state.arrived(1, peer_id(ALICE), [b"third"], 2.0) is None
    state.open(ALICE, HOME, b"", 6.0)
    state.online(1, (peer_id(ALICE),), 9.0)
    assert state.take()[-1] == Online(ALICE, HOME, (b"first",))


def test_a_datagram_between_open_and_online_waits_too() -> None:
    state = at_home()
    state.open(ALICE, HOME, b"", 1.0)
    assert state.arrived(1, peer_id(ALICE), [b"first", b"second"], 1.0) is None
    state.online(1, (peer_id(ALICE),), 2.0)
    assert state.take()[-1] == Online(ALICE, HOME, (b"first",))


def test_an_early_datagram_is_forgotten_after_5_seconds() -> None:
    state = at_home()
    state.arrived(1, peer_id(ALICE), [b"first"], 1.0)
    state.open(ALICE, HOME, b"", 1.0 + EARLY_SECONDS + 0.1)
    state.online(1, (peer_id(ALICE),), 9.0)
    assert state.take()[-1] == Online(ALICE, HOME, ())


def test_early_datagrams_are_bounded_and_room_returns_with_time() -> None:
    state = at_home()
    for number in range(MAX_EARLY + 5):
        state.arrived(1, peer_id(number.to_bytes(32, "big")), [b"x"], 1.0)
    assert state.counters["early_dropped"] == 5
    state.arrived(1, peer_id(ALICE), [b"late"], 1.0 + EARLY_SECONDS + 0.1)
    assert state.counters["early_dropped"] == 5


def test_early_datagrams_of_a_lost_link_are_gone() -> None:
    state = at_home()
    state.arrived(1, peer_id(ALICE), [b"first"], 1.0)
    state.lost(1, 1.5)
    assert not state._early


# Anything, in any order -----------------------------------------------------------------------------------------------

keys = st.sampled_from([ALICE, BOB, bytes([3]) * 32])
servers = st.sampled_from([HOME, OTHER, "rel://plain.example", "rels://alias.example", "?"])
steps = st.one_of(
    st.tuples(st.just("configure"), st.lists(servers, max_size=3)),
    st.tuples(st.just("open"), keys, servers),
    st.tuples(st.just("close"), keys, servers),
    st.tuples(st.just("authenticated"), st.integers(0, 5), servers),
    st.tuples(st.just("lost"), st.integers(0, 5)),
    st.tuples(st.just("online"), st.integers(0, 5), keys),
    st.tuples(st.just("offline"), st.integers(0, 5), keys),
    st.tuples(st.just("arrived"), st.integers(0, 5), keys),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 2.0, 31.0, 70.0])),
)


@given(st.lists(steps, max_size=40))
def test_any_sequence_keeps_links_and_reports_consistent(sequence: list[tuple[object, ...]]) -> None:
    """Each link ends once; a peer is online at most once until it is offline; no time is left behind."""
    state, now = links(), 0.0
    alive: list[int] = []
    online: set[tuple[bytes, str]] = set()
    for step in sequence:
        now += 0.01
        match step:
            case ("configure", list(urls)):
                state.configure(urls, TOKEN, now)
            case ("open", bytes(key), str(server)):
                state.open(key, server, b"", now)
            case ("close", bytes(key), str(server)):
                state.close(key, server)
                online.discard((key, server))
            case ("authenticated", int(index), str(server)) if index < len(alive):
                state.authenticated(alive[index], server, HOME_IP, now)
            case ("lost", int(index)) if index < len(alive):
                state.lost(alive.pop(index), now)
            case ("online", int(index), bytes(key)) if index < len(alive):
                state.online(alive[index], (peer_id(key),), now)
            case ("offline", int(index), bytes(key)) if index < len(alive):
                state.offline(alive[index], (peer_id(key),))
            case ("arrived", int(index), bytes(key)) if index < len(alive):
                state.arrived(alive[index], peer_id(key), [b"x"], now)
            case ("wait", float(seconds)):
                now += seconds
                state.advance(now)
        for effect in state.take():
            match effect:
                case Dial(link=number):
                    assert number not in alive
                    alive.append(number)
                case HangUp(number):
                    alive.remove(number)
                case Announce(number):
                    assert number in alive
                case Online(key, server):
                    assert (key, server) not in online
                    online.add((key, server))
                case Offline(key, server):
                    online.discard((key, server))
        assert all(state.route(key, server) is not None for key, server in online)
        assert state.deadline > now
