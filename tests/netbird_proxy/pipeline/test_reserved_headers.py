"""A reserved or owned header reaches an upstream with our value only, however and wherever a client spells it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy import Guard, RequestTransform
from netbird_proxy.api.headers import fold, is_reserved
from netbird_proxy.api.model import ALLOW
from netbird_proxy.pipeline.head_rules import HeadRules
from netbird_proxy.testing.makers import host_origin, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript

SEPARATORS = (b"-", b"_", b".")
ALIASES = sorted(
    {
        spelled
        for one, two in itertools.product(SEPARATORS, repeat=2)
        for name in (
            b"x%bnetbird%buser" % (one, two),
            b"X%bNetBird%bGroups" % (one, two),
            b"X%bNETBIRD%bAny" % (one, two),
        )
        for spelled in (name, name.upper(), name.lower())
    }
    | {b"Remote-User", b"remote_user", b"REMOTE.USER"}
)
"""Every spelling that an upstream could read as `x-netbird-*` or as the owned `Remote-User`."""


def stamping(seen: list[Any] | None = None) -> StepHooks:
    """An owner that says who is calling, and a guard that looks at the client's head."""

    async def look(exchange: Any) -> object:
        if seen is not None:
            seen.extend(exchange.headers)
        return ALLOW

    def stamp(_exchange: object, outgoing: Any) -> None:
        outgoing.set_or_delete(b"X-NetBird-User", b"alice")
        outgoing.set_or_delete(b"X-NetBird-Groups", None)
        outgoing.set_or_delete(b"Remote-User", b"alice")

    owns = (b"X-NetBird-User", b"X-NetBird-Groups", b"Remote-User")
    return StepHooks(
        restrict=[("look", Guard(look))], transform_request=[("stamp", RequestTransform(stamp, owns=owns))]
    )


def ours(fields: Any) -> list[tuple[bytes, bytes]]:
    """The fields that an upstream could take for an identity."""
    return [(name, value) for name, value in fields if is_reserved(name) or fold(name) == b"remote-user"]


EXPECTED = [(b"x-netbird-user", b"alice"), (b"remote-user", b"alice")]


@pytest.mark.parametrize("alias", ALIASES, ids=lambda one: one.decode())
async def test_alias_never_passes(alias: bytes) -> None:
    """Not as a field, not twice, not beside its `Connection` listing, not as a trailer; and no step ever sees it."""
    seen: list[Any] = []
    play = Transcript(route(), hooks=stamping(seen))

    answer = await play.request(
        "POST",
        "/",
        origin=host_origin(),
        headers=[
            (alias, b"root"),
            (alias, b"root"),
            (b"connection", b"close, " + alias),
            (b"transfer-encoding", b"chunked"),
            (b"trailer", alias),
        ],
        body=[b"a", b"b"],
        trailers=[(alias, b"root"), (b"x-checksum", b"1")],
    )

    sent = play.upstreams.last
    assert answer.status == 200
    assert ours(seen) == []
    assert alias.lower() not in b"".join(value for name, value in seen if name == b"connection").lower()
    assert ours(sent.fields) == EXPECTED
    assert sent.trailers == [(b"x-checksum", b"1")]
    assert b"root" not in sent.head


@pytest.mark.parametrize("alias", ALIASES, ids=lambda one: one.decode())
async def test_alias_is_nobodys_without_a_plugin(alias: bytes) -> None:
    """The reserved prefix is the core's, plugin or no plugin; what nobody owns on a route passes as the client's."""
    play = Transcript(route())

    await play.request(origin=host_origin(), headers=[(alias, b"root")])

    sent = [name for name, value in play.upstreams.last.fields if value == b"root"]
    assert sent == ([] if is_reserved(alias) else [alias.lower()])


@pytest.mark.parametrize("alias", ALIASES, ids=lambda one: one.decode())
async def test_custom_header_cannot_forge(alias: bytes) -> None:
    """An operator's own fields lose to reserved and owned names too."""
    target = upstream(custom_headers=((alias, b"root"), (b"x-team", b"blue")))
    play = Transcript(route(to=target), hooks=stamping())

    await play.request(origin=host_origin(), headers=[(b"X-Team", b"red"), (b"X_Team", b"red")])

    sent = play.upstreams.last
    assert ours(sent.fields) == EXPECTED
    assert [pair for pair in sent.fields if fold(pair[0]) == b"x-team"] == [(b"x-team", b"blue")]


async def test_listing_our_header_as_hop_by_hop_does_not_remove_it() -> None:
    """A client that lists the identity header in `Connection` cannot make us drop what we stamped."""
    play = Transcript(route(), hooks=stamping())

    await play.request(origin=host_origin(), headers=[(b"connection", b"x-netbird-user, remote-user")])

    assert ours(play.upstreams.last.fields) == EXPECTED


@given(
    st.lists(st.sampled_from(SEPARATORS), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=20, max_size=20),
    st.from_regex(rb"[a-zA-Z0-9._-]{1,12}", fullmatch=True),
)
def test_any_spelling_folds_to_the_reserved_prefix(separators: list[bytes], upper: list[bool], rest: bytes) -> None:
    """Whatever case and separators: it is reserved, and the incoming head drops it."""
    name = separators[0].join((b"x", b"netbird")) + separators[1] + rest
    mixed = bytes(
        one ^ 0x20 if flip and 97 <= one <= 122 else one
        for one, flip in zip(name, itertools.cycle(upper), strict=False)
    )

    assert is_reserved(mixed)
    assert HeadRules().incoming([(mixed, b"1"), (b"x-other", b"2")]).raw == [(b"x-other", b"2")]
