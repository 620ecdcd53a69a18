"""The listings of routes show each step of a route, with the header names that its transforms own."""

from __future__ import annotations

from netbird_proxy import ALLOW, Endpoint, Guard, PluginInfo, RequestTransform, ResponseTransform, Selector, hookimpl
from netbird_proxy.operator.inspection import describe_plugins, describe_routes, dry_run
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.testing.makers import HOST, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript


async def allow(_exchange: object) -> object:
    return ALLOW


async def app(*_: object) -> None: ...


def nothing(_exchange: object, _head: object) -> None:
    return None


BOTH = (upstream("http://10.0.0.1:80"), upstream("http://10.0.0.2:80"))
STEPS = [
    "restrict gate",
    "transform_request names (owns remote-user, x-a)",
    "transform_request plain",
    "select chooser",
    "transform_response pages (owns server, x-frame-options; own answers too)",
    "transform_response quiet (owns vary)",
]
HOOKS = StepHooks(
    restrict=[("gate", Guard(allow))],
    transform_request=[
        ("names", RequestTransform(nothing, owns=(b"X_A", b"Remote-User"))),
        ("plain", RequestTransform(nothing)),
    ],
    transform_response=[
        ("pages", ResponseTransform(nothing, owns=(b"X-Frame-Options", b"Server"), own_answers=True)),
        ("quiet", ResponseTransform(nothing, owns=(b"vary",))),
    ],
    select=("chooser", Selector(lambda exchange, candidates, tried: candidates[0])),
    endpoint=[("shop", Endpoint(app))],
)


def test_routes_show_transforms_with_the_names_that_they_own() -> None:
    """In the order in which they run, behind the guards, in `routes` and in `explain HOST PATH`."""
    play = Transcript(mapping(route(to=BOTH)), hooks=HOOKS)

    [row] = describe_routes(play.routing)
    story = dry_run(play.routing, HOST, "/x", None)

    assert row["steps"] == STEPS
    assert story["steps"] == STEPS


def test_endpoints_show_the_transforms_of_their_answers() -> None:
    """No request transform runs there."""
    play = Transcript(mapping(route(to=BOTH)), hooks=HOOKS)

    assert dry_run(play.routing, HOST, "/__netbird__/shop/x", None)["steps"] == [STEPS[0], *STEPS[4:5]]


def test_plugins_show_their_hooks() -> None:
    """The listing has the hooks in the order of their stages."""

    class Answers:
        @hookimpl
        def describe(self) -> PluginInfo:
            return PluginInfo()

        @hookimpl
        def transform_response(self) -> None:
            return None

    [row] = describe_plugins(load_hooks([("answers", Answers())]).plugins)

    assert row["hooks"] == ["describe", "transform_response"]
