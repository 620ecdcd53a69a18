"""Compiling: what refuses a mapping, and that nothing guarding is served unguarded."""

from __future__ import annotations

from typing import Any

import pytest

from netbird_proxy import ALLOW, Authenticator, Endpoint, Guard, RequestTransform, ResponseTransform
from netbird_proxy.api.errors import PluginFailed, RouteRefused
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import RouteSpec, ServiceId, ServiceMapping, Upstream
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.testing.makers import host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript


async def allow(_exchange: object) -> object:
    return ALLOW


async def passes(_exchange: object) -> object:
    return None


def transform(_exchange: object, _outgoing: object) -> None:
    return None


def owning(*names: bytes) -> RequestTransform:
    return RequestTransform(transform, owns=names)


def guarded(**fields: Any) -> RouteSpec:
    return route(guarding={"gate": ("private",)}, **fields)


async def refusal(hooks: StepHooks, *mappings: ServiceMapping | RouteSpec) -> str:
    """Apply, check that a closed route stands in, and return why."""
    play = Transcript(*mappings, hooks=hooks)
    [report] = play.reports
    assert report.ok == (not report.refused)
    if report.refused:
        answer = await play.request(origin=host_origin())
        assert (answer.status, b"route_refused" in answer.body) == (503, True)
        assert report.refused.encode() not in answer.body
        assert play.upstreams.dialed == 0
        play.saw("respond 503", "observe 503 route_refused")
    return report.refused


@pytest.mark.parametrize(
    "hooks",
    [
        StepHooks(restrict=[("gate", Guard(allow))]),
        StepHooks(authorize=[("gate", Guard(allow))]),
        StepHooks(authenticate=[("gate", Authenticator("exclusive", passes))]),
        StepHooks(transform_request=[("gate", owning(b"x-role"))]),
    ],
)
async def test_guarding_field_with_an_enforcing_step_is_served(hooks: StepHooks) -> None:
    """A guard, an authenticator that nobody comes before, or a header that nobody else can set."""
    assert await refusal(hooks, guarded()) == ""


@pytest.mark.parametrize(
    "hooks",
    [
        StepHooks(),
        StepHooks(restrict=[("other", Guard(allow))]),
        StepHooks(transform_request=[("gate", owning())]),
        StepHooks(transform_request=[("other", owning(b"x-role"))]),
        StepHooks(authenticate=[("gate", Authenticator("ambient", passes))]),
        StepHooks(authenticate=[("gate", Authenticator("prompt", passes))]),
        StepHooks(restrict=[("gate", Guard(allow, kinds=frozenset(("stream",))))]),
        StepHooks(authenticate=[("gate", Authenticator("exclusive", passes, kinds=frozenset(("stream",))))]),
    ],
)
async def test_guarding_field_without_an_enforcing_step_is_refused(hooks: StepHooks) -> None:
    """Not another plugin's step, not one that only helps, not one for another kind of traffic."""
    assert await refusal(hooks, guarded()) == (
        "gate enforces nothing for private on /: its hooks must return a guard, an exclusive authenticator, or a "
        "transform that owns headers"
    )


async def test_guarding_field_that_is_only_observed_is_refused() -> None:
    """Mode observe is for trying a guard out, never behind a field that asks to be guarded."""
    hooks = StepHooks(restrict=[("gate", Guard(allow, observe=True))], authorize=[("gate", Guard(allow))])
    assert "only observes" in await refusal(hooks, guarded())
    assert await refusal(hooks, route()) == ""


async def test_unreachable_target_is_refused() -> None:
    """No dialer, no route; the address is for management to read."""
    assert "can reach http://10.0.0.7:8080" in await refusal(StepHooks(dialer=None), route())


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([("a", owning(b"Remote-User")), ("b", owning(b"remote_user"))], "both a and b own the header remote-user"),
        ([("a", owning(b"Transfer_Encoding"))], "a may not own the header transfer-encoding: it frames the message"),
        ([("a", owning(b"Host"))], "a may not own the header host: it frames the message"),
        ([("a", owning(b"VIA"))], "a may not own the header via: the core finds loops by it"),
        (
            [("a", owning(b"Cookie"))],
            "a may not own the header cookie: the core takes its own cookies out of it; a transform may set it without "
            "owning it",
        ),
        (
            [("a", owning(b"Authorization"))],
            "a may not own the header authorization: logins read it; a transform may set it without owning it",
        ),
        *(
            (
                [("a", owning(name))],
                f"a may not own the header {name.decode().replace('_', '-').lower()}: it names the client, which "
                "the core and the plugin forwarding do",
            )
            for name in (b"X-Forwarded-For", b"x_forwarded_user", b"Forwarded", b"X-Real-IP")
        ),
        ([("forwarding", owning(b"x-forwarded-for", b"forwarded", b"x-real-ip"))], ""),
    ],
)
async def test_header_has_one_owner(transforms: Any, said: str) -> None:
    """Under any alias; what frames and routes is nobody's."""
    assert await refusal(StepHooks(transform_request=transforms), route()) == said


def answering(*names: bytes) -> ResponseTransform:
    return ResponseTransform(transform, owns=names)


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        ([("a", answering(b"Server")), ("b", answering(b"server"))], "both a and b own the response header server"),
        ([("a", answering(b"X_A")), ("b", answering(b"x-a"))], "both a and b own the response header x-a"),
        *(
            ([("a", answering(name))], f"a may not own the response header {name.decode()}: it frames the message")
            for name in (b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"trailer", b"keep-alive")
        ),
        (
            [("a", answering(b"Date"))],
            "a may not own the response header date: caches compute the age of an answer from it",
        ),
        *(
            (
                [("a", answering(name))],
                f"a may not own the response header {name.decode()}: it describes the body, which no transform changes",
            )
            for name in (b"content-encoding", b"content-range")
        ),
        (
            [("a", answering(b"X_NetBird_User"))],
            "a may not own the response header x-netbird-user: it is reserved for the core",
        ),
        (
            [("a", answering(b"Sec-WebSocket-Accept"))],
            "a may not own the response header sec-websocket-accept: it is a part of the upstream's handshake",
        ),
        ([("a", answering(b"x a"))], "a may not own the response header x a: it is not the name of a field"),
        ([("a", answering(b"x-a", b"X_A")), ("a", answering(b"x.a")), ("b", answering(b"set-cookie"))], ""),
    ],
)
async def test_response_header_has_one_owner(transforms: Any, reason: str) -> None:
    """Under any alias; what frames the answer, dates it or describes its body is nobody's."""
    assert await refusal(StepHooks(transform_response=transforms), route()) == reason


async def test_response_header_has_one_owner_on_endpoints_too() -> None:
    """Their routes are asked about by their own prefix, and a conflict there refuses the mapping."""

    class Hooks(StepHooks):
        def transform_response(self, route: RouteSpec, proxy: Proxy) -> Any:
            own = route.prefix.startswith(b"/__netbird__/")
            return [("a", answering(b"x-a")), ("b", answering(b"x-a"))] if own else []

    async def app(*_: object) -> None: ...

    assert await refusal(Hooks(endpoint=[("shop", Endpoint(app))]), route()) == (
        "both a and b own the response header x-a"
    )


async def test_owning_a_response_header_enforces_nothing() -> None:
    """It keeps nobody out, so a guarding field still needs a step that does."""
    hooks = StepHooks(transform_response=[("gate", answering(b"x-role"))])
    assert "gate enforces nothing" in await refusal(hooks, guarded())


async def test_transform_cannot_set_via() -> None:
    """Loops are found by it, so only the core says it."""

    def hides(_exchange: object, outgoing: Any) -> None:
        outgoing.delete(b"Via")

    play = Transcript(route(), hooks=StepHooks(transform_request=[("a", RequestTransform(hides))]))
    assert (await play.request(origin=host_origin())).status == 503
    assert play.upstreams.dialed == 0


async def test_plugin_may_own_a_name_twice() -> None:
    """Two transforms of one plugin agree with themselves."""
    hooks = StepHooks(transform_request=[("a", owning(b"x-a")), ("a", owning(b"X_A"))])
    assert await refusal(hooks, route()) == ""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (mapping(refused="mode 'x' is unknown"), "mode 'x' is unknown"),
        (mapping(route(service=ServiceId("svc-2"))), "is not the mapping's own"),
        (mapping(route(host="other.example.com")), "is not the mapping's own"),
        (mapping(route(kind="stream")), "kind stream is not served"),
        (mapping(route(b"app")), "is not a prefix"),
        (mapping(route(b"/app/")), "is not a prefix"),
        (mapping(route(b"/a"), route(b"/a")), "two routes have the path /a"),
        (mapping(route(to=())), "has no target"),
        (mapping(route(to=upstream("tcp://10.0.0.7:80"))), "is not HTTP"),
        (mapping(route(to=upstream(path=b"x"))), "the target path 'x' cannot be sent"),
        (mapping(route(to=upstream(custom_headers=((b"a b", b""),)))), "the custom header 'a b' cannot be sent"),
    ],
)
async def test_what_cannot_be_served_is_refused(made: ServiceMapping, said: str) -> None:
    """In one sentence for management, with a closed route in its place."""
    assert said in await refusal(StepHooks(), made)


async def test_mapping_without_routes_is_refused() -> None:
    """A mapping that leads nowhere is not served as if it had no guards either."""
    from dataclasses import replace

    assert await refusal(StepHooks(), replace(mapping(), routes=())) == "the mapping has no target"


class Failing(StepHooks):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def authorize(self, route: RouteSpec, proxy: Proxy) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RouteRefused("a private service needs a tunnel"), "a private service needs a tunnel"),
        (PluginFailed("gate", "authorize raised ValueError"), "plugin gate: authorize raised ValueError"),
        (ValueError("secret"), "the proxy could not compile it: ValueError"),
    ],
)
async def test_hook_that_fails_refuses_its_route(error: Exception, said: str) -> None:
    """Never served without the plugin, and nothing but our own words reach management."""
    assert await refusal(Failing(error), route()) == said


async def test_refused_mapping_holds_no_pool() -> None:
    """What was taken before the refusal is given back."""

    class SecondFails(StepHooks):
        def dialer(self, route: RouteSpec, upstream: Any, proxy: Proxy) -> Any:
            return super().dialer(route, upstream, proxy) if upstream.address.port == 80 else None

    play = Transcript(route(to=(upstream("http://10.0.0.1:80"), upstream("http://10.0.0.1:81"))), hooks=SecondFails())
    assert play.reports[0].refused
    await _settle()
    assert [pool.retired for pool in play.upstreams.pools] == [True]


async def test_compile_that_ends_in_no_exception_is_a_refusal() -> None:
    """A plugin's own comparison may raise anything; no route is left open for it, and nothing else ends."""
    said = "the proxy could not compile it: KeyboardInterrupt"
    assert await refusal(Failing(KeyboardInterrupt()), route()) == said


async def _settle() -> None:
    """Let timers with no delay run."""
    import asyncio

    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)
    await done.wait()


class Dialers(StepHooks):
    """Each target has a dialer of its own, as one may be a peer and another this machine's neighbor."""

    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> tuple[str, Dialer] | None:
        return (f"plugin-{upstream.address.host}", NamedDialer(upstream.address.host))


class NamedDialer:
    def __init__(self, name: str) -> None:
        self.name = name

    async def dial(self, *_args: object, **_options: object) -> Any:
        raise AssertionError("the upstreams are scripted")


async def test_several_targets_of_one_path_take_turns_each_with_its_dialer() -> None:
    """One route, one pool for each target, and no target is reached as another one is."""
    targets = tuple(upstream(f"http://10.0.0.{number}:80", path=b"/%d" % number) for number in (1, 2, 3))
    play = Transcript(route(to=targets), hooks=Dialers())

    for number in (1, 2, 3, 1):
        assert (await play.request("GET", "/x", origin=host_origin())).status == 200
        play.saw(f"dial http://10.0.0.{number}:80", "respond 200", "observe 200")

    reached = {connection._pool.upstream.address.host: connection for connection in play.upstreams.connections}
    assert {host: connection._pool.dialer.name for host, connection in reached.items()} == {  # type: ignore[attr-defined]
        host: host for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    }
    assert reached["10.0.0.3"].request_line == b"GET /3/x HTTP/1.1"
