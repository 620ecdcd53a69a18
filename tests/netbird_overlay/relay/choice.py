"""Links in virtual time for tests, without connections."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_overlay.relay.effects import Dial, Effect, HomeChanged
from netbird_overlay.relay.links import Links
from netbird_wire.backoff import Backoff
from netbird_wire.relay_tokens import relay_token

TOKEN = relay_token("secret", 1_900_000_000)
HOME, OTHER = "rels://home.example", "rels://other.example"
HOME_IP = bytes([192, 0, 2, 1])
ALICE, BOB = bytes([1]) * 32, bytes([2]) * 32


def links() -> Links:
    return Links(Backoff(2.0, 60.0, pick=lambda low, high: high))


def configured(*urls: str, now: float = 0.0) -> tuple[Links, list[int]]:
    """Links that dial these relays, and the numbers of the dials."""
    state = links()
    state.configure(urls, TOKEN, now)
    return state, [effect.link for effect in state.take() if isinstance(effect, Dial)]


def at_home() -> Links:
    state, (number,) = configured(HOME)
    state.authenticated(number, HOME, HOME_IP, 0.0)
    assert state.take() == [HomeChanged()]
    return state


def dials(effects: Sequence[Effect]) -> list[str]:
    return [effect.url.text for effect in effects if isinstance(effect, Dial)]


def at(state: Links, now: float) -> list[Effect]:
    state.advance(now)
    return state.take()
