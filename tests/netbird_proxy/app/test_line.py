"""The thin line: an application, a route, a pipeline, an upstream."""

from __future__ import annotations

from netbird_proxy import ALLOW, Guard
from netbird_proxy.testing.makers import HOST, host_origin, route, tunnel_origin
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.upstreams import ok


async def test_request_reaches_its_upstream_and_comes_back(transcript) -> None:
    """A mapped host and path are forwarded, observed once, and answered with what the upstream said."""
    play: Transcript = transcript(route(), upstream=[ok(b"hello", (b"x-a", b"1"))])

    answer = await play.request("GET", "/x?y=1", origin=host_origin())

    play.saw("dial http://10.0.0.7:8080", "respond 200", "observe 200")
    assert (answer.status, answer.body, answer.get(b"x-a"), answer.complete) == (200, b"hello", b"1", True)
    sent = play.upstreams.last
    assert sent.request_line == b"GET /x?y=1 HTTP/1.1"
    assert sent.get(b"host") == [b"10.0.0.7:8080"]
    assert sent.get(b"x-forwarded-for") == [b"203.0.113.9"]
    assert sent.get(b"x-forwarded-host") == [HOST.encode()]


async def test_guard_opens_only_with_allow(transcript) -> None:
    """A guard that says ALLOW lets the exchange on to its upstream."""

    async def allow(_exchange: object) -> object:
        return ALLOW

    play: Transcript = transcript(route(), hooks=StepHooks(restrict=[("gate", Guard(allow))]))

    answer = await play.request(origin=tunnel_origin())

    assert answer.status == 200
    play.saw("restrict gate: allow", "dial http://10.0.0.7:8080", "respond 200", "observe 200")


async def test_unknown_host_is_observed(transcript) -> None:
    """No route is a small route: 404, no dial, one observation."""
    play: Transcript = transcript(route())

    answer = await play.request("GET", "/", host="other.example.com", origin=host_origin())

    assert answer.status == 404
    play.saw("respond 404", "observe 404 no_route")
