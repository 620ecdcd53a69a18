"""Matching: host, longest prefix on segment borders, account, and paths that can be read in two ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy import ALLOW, Guard
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import AccountId, RouteSpec
from netbird_proxy.http.folding import readings
from netbird_proxy.routing.table import HostRoutes, Route, Table
from netbird_proxy.testing.makers import ACCOUNT, host_origin, mapping, route, tunnel_origin, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript

SEGMENT = st.sampled_from([b"a", b"b", b"ab", b"A", b"a%20b", b"", b"."])
PATH = st.lists(SEGMENT, min_size=1, max_size=5).map(lambda parts: b"/" + b"/".join(parts))
PREFIX = st.lists(st.sampled_from([b"a", b"b", b"ab"]), min_size=0, max_size=3).map(
    lambda parts: b"/" + b"/".join(parts)
)


def bare(name: str) -> Route:
    return Route(route(name.encode()), None)  # type: ignore[arg-type]  # matching never runs it


NOWHERE = bare("/nowhere")
AMBIGUOUS = bare("/ambiguous")


def host(*prefixes: bytes, differ: bool = False) -> tuple[HostRoutes, dict[bytes, Route]]:
    routes = {prefix: bare(prefix.decode()) for prefix in prefixes}
    return HostRoutes(ACCOUNT, routes, AMBIGUOUS, differ=differ), routes


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        (b"/", b"/"),
        (b"/apix", b"/"),
        (b"/api", b"/api"),
        (b"/api/", b"/api"),
        (b"/api/v1", b"/api/v1"),
        (b"/api/v1x", b"/api"),
        (b"/api/v1/x", b"/api/v1"),
        (b"//api", b"/"),
        (b"/API", b"/"),
        (b"/%61pi", b"/"),
    ],
)
def test_longest_prefix_on_a_segment_border(path: bytes, prefix: bytes) -> None:
    """Raw bytes; `/api` is not `/apix`; the longest wins."""
    entry, routes = host(b"/api", b"/", b"/api/v1")
    assert entry.match(path) is routes[prefix]


@pytest.mark.parametrize("path", [b"*", b"", b"x/api", b"/other"])
def test_no_prefix_no_route(path: bytes) -> None:
    """Without a root route only what is named is there; what is no path is nowhere."""
    entry, _ = host(b"/api")
    assert entry.match(path) is None
    assert host(b"/")[0].match(b"*") is None


@given(st.sets(PREFIX, min_size=1, max_size=6), PATH)
def test_match_is_the_longest_of_those_that_hold(prefixes: set[bytes], path: bytes) -> None:
    """Compared with the rule said plainly."""
    entry, routes = host(*prefixes)
    holding = [prefix for prefix in prefixes if prefix == b"/" or path == prefix or path.startswith(prefix + b"/")]
    expected = routes[max(holding, key=len)] if holding else None
    assert entry.match(path) is expected


@given(st.sets(PREFIX, min_size=2, max_size=6), PATH)
def test_two_readings_never_disagree_unnoticed(prefixes: set[bytes], path: bytes) -> None:
    """Where guards differ, a path is served by the route that every reading of it leads to, or not at all."""
    entry, _ = host(*prefixes, differ=True)
    found = entry.match(path)
    if found is not AMBIGUOUS:
        plain = host(*prefixes)[0]
        assert {repr(plain.match(form)) for form in (readings(path) or {}).values()} == {repr(found)}


@pytest.mark.parametrize(
    "path",
    [
        b"/%61dmin",
        b"//admin",
        b"/ADMIN",
        b"/x/../admin",
        b"/x;/../admin",
        b"/.//admin",
        b"/admin;x",
        b"/admin%2Fx",
        b"/%2561dmin",
        b"/ADMIN/..;/x",
        b"/admin.",
        b"/x%5Cy",
    ],
)
def test_path_around_a_guard_is_ambiguous(path: bytes) -> None:
    """Each is another route in raw bytes than an upstream might read, so it is none."""
    entry, routes = host(b"/", b"/admin", differ=True)
    assert entry.match(path) is AMBIGUOUS
    assert host(b"/", b"/admin")[0].match(path) is not AMBIGUOUS
    assert entry.match(b"/admin/x%20y") is routes[b"/admin"]
    assert entry.match(b"/other/X") is routes[b"/"]


def test_path_with_too_many_readings_is_ambiguous() -> None:
    """The work on one path is bounded, and nobody needs such a path."""
    entry, _ = host(b"/", b"/admin", differ=True)
    assert entry.match(b"/%41;a%20.x\\B" * 4_000) is AMBIGUOUS


def test_mixed_case_prefixes_are_found_by_their_folded_form() -> None:
    """A prefix that is itself not folded still matches itself."""
    entry, routes = host(b"/", b"/Admin", differ=True)
    assert entry.match(b"/Admin/x") is routes[b"/Admin"]
    assert entry.match(b"/admin/x") is AMBIGUOUS  # an upstream without case would read it as the guarded one
    assert entry.match(b"/other") is routes[b"/"]


def test_account_sees_only_its_own() -> None:
    """On a tunnel another account's host is not there; on a host socket all are."""
    entry, routes = host(b"/")
    table = Table({"app.example.com": entry}, NOWHERE)
    assert table.match("app.example.com", b"/", None) is routes[b"/"]
    assert table.match("app.example.com", b"/", ACCOUNT) is routes[b"/"]
    assert table.match("app.example.com", b"/", AccountId("acct-2")) is NOWHERE
    assert table.match("other.example.com", b"/", None) is NOWHERE
    assert host(b"/x")[0].match(b"/") is None
    assert Table({"a": host(b"/x")[0]}, NOWHERE).match("a", b"/", None) is NOWHERE


class OnAdmin(StepHooks):
    """A guard on one prefix only."""

    def restrict(self, route: RouteSpec, proxy: Proxy) -> Any:
        async def allow(_exchange: object) -> object:
            return ALLOW

        return [("gate", Guard(allow))] if route.prefix == b"/admin" else []


async def test_ambiguous_path_is_refused_and_observed() -> None:
    """400, no step, no dial."""
    play = Transcript(mapping(route(b"/"), route(b"/admin")), hooks=OnAdmin())

    answer = await play.request("GET", "/%61dmin", origin=host_origin())

    assert answer.status == 400
    play.saw("respond 400", "observe 400 ambiguous_path")
    assert (await play.request("GET", "/admin", origin=host_origin())).status == 200
    assert (await play.request("GET", "/x%20y", origin=host_origin())).status == 200


@pytest.mark.parametrize("path", ["/a%2Fb", "/a%2fb?x=%2F", "/a%5Cb", "/a%5cb", "/%2F"])
@pytest.mark.parametrize("prefixes", [(b"/",), (b"/", b"/b")])
async def test_encoded_separators_pass_where_routes_are_guarded_alike(path: str, prefixes: tuple[bytes, ...]) -> None:
    """Package registries and forges need them. They go on byte for byte."""
    play = Transcript(mapping(*(route(prefix) for prefix in prefixes)))
    assert (await play.request("GET", path, origin=host_origin())).status == 200
    assert play.upstreams.last.request_line == b"GET %b HTTP/1.1" % path.encode()


@pytest.mark.parametrize("path", ["/a%2Fb", "/a%2fb?x=%2F", "/a%5Cb", "/a%5cb", "/%2F"])
async def test_encoded_separators_are_refused_where_routes_differ(path: str) -> None:
    """One more segment border to some upstreams: 400, whatever route it is."""
    play = Transcript(mapping(route(b"/"), route(b"/admin")), hooks=OnAdmin())
    assert (await play.request("GET", path, origin=host_origin())).status == 400
    play.saw("respond 400", "observe 400 ambiguous_path")
    assert (await play.request("GET", "/a?x=%2F", origin=host_origin())).status == 200


async def test_passing_them_past_different_guards_is_refused() -> None:
    """Which guard would it be? Nobody can say, so such a service is not served."""
    routes = (route(b"/", pass_ambiguous=True), route(b"/admin", pass_ambiguous=True))
    play = Transcript(mapping(*routes), hooks=OnAdmin())

    assert "guarded differently" in play.reports[0].refused
    assert (await play.request("GET", "/x", origin=host_origin())).status == 503
    assert Transcript(mapping(*routes)).reports[0].ok


async def test_passed_separators_do_not_climb() -> None:
    """Below a target's own path they are read both ways before they go on."""
    play = Transcript(mapping(route(b"/", pass_ambiguous=True, to=upstream(path=b"/public"))))
    assert (await play.request("GET", "/a%2F..%2F..%2Fb", origin=host_origin())).status == 400
    assert (await play.request("GET", "/a%2Fb", origin=host_origin())).status == 200


async def test_other_accounts_tunnel_finds_nothing() -> None:
    """404, as for a host that does not exist."""
    play = Transcript(route())
    answer = await play.request(origin=tunnel_origin(account="acct-2"))
    assert answer.status == 404
    play.saw("respond 404", "observe 404 no_route")


@pytest.mark.parametrize("path", ["/app/../x", "/app/%2e%2e/x", "/app/a/../../x"])
async def test_dots_do_not_lead_above_the_targets_path(path: str) -> None:
    """A target below `/` is a border that an upstream's own reading of dots must not cross."""
    play = Transcript(mapping(route(b"/app", to=upstream(path=b"/public"))))
    assert (await play.request("GET", path, origin=host_origin())).status == 400
    assert (await play.request("GET", "/app/a/../b", origin=host_origin())).status == 200


def test_routes_say_what_they_are() -> None:
    """For logs and assertion messages."""
    assert repr(bare("/x")) == "Route(svc-1 app.example.com/x)"
    assert repr(Route(None, None)) == "Route(none, NoneType)"  # type: ignore[arg-type]
