"""Routes of one host are guarded alike, or every path that can be read in two ways is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from netbird_proxy import ALLOW, Authenticator, Deny, Guard, Identity, RequestTransform, ResponseTransform, UserId
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import RouteSpec, Upstream
from netbird_proxy.testing.fakes import HostDialer
from netbird_proxy.testing.makers import host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript

READ_TWICE = ("/%61dmin", "/ADMIN/x", "//admin", "/admin;x", "/x%2Fadmin")


class Hooks(StepHooks):
    """Steps that are made for each route."""

    def __init__(self, stage: str, step: Callable[[RouteSpec], Any]) -> None:
        super().__init__()
        self.stage = stage
        self.step = step

    def _made(self, stage: str, route: RouteSpec) -> Any:
        return [("gate", self.step(route))] if stage == self.stage else []

    def restrict(self, route: RouteSpec, proxy: Proxy) -> Any:
        return self._made("restrict", route)

    def authenticate(self, route: RouteSpec, proxy: Proxy) -> Any:
        return self._made("authenticate", route)

    def authorize(self, route: RouteSpec, proxy: Proxy) -> Any:
        return self._made("authorize", route)

    def transform_request(self, route: RouteSpec, proxy: Proxy) -> Any:
        return self._made("transform_request", route)

    def transform_response(self, route: RouteSpec, proxy: Proxy) -> Any:
        return self._made("transform_response", route)

    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Any:
        return ("host", self.step(route)) if self.stage == "dialer" else super().dialer(route, upstream, proxy)


async def allow(_exchange: object) -> object:
    return ALLOW


async def known(_exchange: object) -> Identity:
    return Identity(UserId("alice"))


def nothing(_exchange: object, _outgoing: object) -> None:
    return None


def closing(spec: RouteSpec) -> Guard:
    """Decides by the path of its route."""

    async def check(_exchange: object) -> Any:
        return Deny(403, "closed") if spec.prefix == b"/admin" else ALLOW

    return Guard(check)


@dataclass(frozen=True)
class Named(HostDialer):
    name: str


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


DIFFERENT: dict[str, StepHooks] = {
    "a guard that decides by its route's path": Hooks("restrict", closing),
    "the same in another stage": Hooks("authorize", closing),
    "guards that depend on different values": Hooks("restrict", lambda spec: Guard(allow, depends_on=spec.prefix)),
    "guards that depend on callables": Hooks("restrict", lambda spec: Guard(allow, depends_on=lambda: spec)),
    "guards that cannot be compared": Hooks("restrict", lambda _spec: Guard(allow, depends_on=Incomparable())),
    "guards of other kinds": Hooks(
        "restrict",
        lambda spec: Guard(
            allow, kinds=frozenset(("http",) if spec.prefix == b"/" else ("http", "websocket")), depends_on=()
        ),
    ),
    "authenticators of each route": Hooks("authenticate", lambda _spec: Authenticator("exclusive", lambda e: known(e))),
    "transforms of each route": Hooks("transform_request", lambda _spec: RequestTransform(lambda _e, _o: None)),
    "response transforms of each route": Hooks(
        "transform_response", lambda _spec: ResponseTransform(lambda _e, _h: None)
    ),
    "other dialers": Hooks("dialer", lambda spec: Named(spec.prefix.decode())),
}
ALIKE: dict[str, StepHooks] = {
    "nothing": StepHooks(),
    "one guard": StepHooks(restrict=[("gate", Guard(allow))]),
    "the same check": Hooks("restrict", lambda _spec: Guard(allow)),
    "guards that depend on the same": Hooks(
        "restrict", lambda spec: Guard(lambda e: allow(e), depends_on=(spec.account, {"a": 1}))
    ),
    "authenticators that depend on the same": Hooks(
        "authenticate", lambda spec: Authenticator("exclusive", lambda e: known(e), depends_on=spec.account)
    ),
    "one transform": Hooks("transform_request", lambda _spec: RequestTransform(nothing, owns=(b"x-a",))),
    "response transforms that depend on the same": Hooks(
        "transform_response", lambda spec: ResponseTransform(lambda _e, _h: None, depends_on=spec.account)
    ),
    "equal dialers": Hooks("dialer", lambda _spec: Named("same")),
}


def play(hooks: StepHooks, *more: RouteSpec) -> Transcript:
    return Transcript(mapping(*(more or (route(b"/"), route(b"/admin")))), hooks=hooks)


@pytest.mark.parametrize("path", READ_TWICE)
@pytest.mark.parametrize("case", DIFFERENT)
async def test_promise_4_a_path_cannot_choose_between_different_guards(case: str, path: str) -> None:
    """400, without a step and without a dial."""
    transcript = play(DIFFERENT[case])
    assert (await transcript.request("GET", path, origin=host_origin())).status == 400
    transcript.saw("respond 400", "observe 400 ambiguous_path")


@pytest.mark.parametrize("path", READ_TWICE)
@pytest.mark.parametrize("case", ALIKE)
async def test_paths_pass_as_they_came_where_routes_are_guarded_alike(case: str, path: str) -> None:
    """Nothing is gained by another reading."""
    transcript = play(ALIKE[case])
    assert (await transcript.request("GET", path, origin=host_origin())).status == 200
    assert transcript.upstreams.last.request_line == b"GET %b HTTP/1.1" % path.encode()


@pytest.mark.parametrize("path", READ_TWICE)
async def test_a_host_with_one_prefix_never_compares(path: str) -> None:
    """There is no other route that the path could mean."""
    transcript = play(Hooks("restrict", closing), route(b"/"))
    assert (await transcript.request("GET", path, origin=host_origin())).status == 200


@pytest.mark.parametrize(
    "other",
    [
        route(b"/admin", values={str: "settings"}),
        route(b"/admin", to=upstream(values={str: "settings"})),
        route(b"/admin", same_origin=False),
        route(b"/admin", to=(upstream(), upstream(values={str: "settings"}))),
    ],
)
async def test_promise_4_settings_of_route_or_target_tell_routes_apart(other: RouteSpec) -> None:
    """A step may read them for each exchange, so they count as guards do."""
    transcript = play(StepHooks(restrict=[("gate", Guard(allow))]), route(b"/"), other)
    assert (await transcript.request("GET", "/%61dmin", origin=host_origin())).status == 400
