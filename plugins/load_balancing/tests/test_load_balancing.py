"""Load goes to upstreams as the settings ask; clients keep theirs; what cannot be reached is left alone for a while."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from netbird_load_balancing.balancer import Balancer
from netbird_load_balancing.health import UpstreamStates
from netbird_load_balancing.management import LoadBalancing as ManagementHalf
from netbird_load_balancing.proxy import LoadBalancing, LoadBalancingOptions
from netbird_load_balancing.settings import PLUGIN, Ejection, LoadBalancingSettings, TargetWeight
from netbird_management.plugins.hooks import load_hooks as load_management
from netbird_proxy import Dialer, DialRefused, ExchangeView, PluginInfo, TlsFailed, Upstream, hookimpl
from netbird_proxy.api.errors import HeadTimeout, RouteRefused, UpstreamClosed, UpstreamOverloaded
from netbird_proxy.api.model import ServiceMapping
from netbird_proxy.api.share import Share
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.file.read import read_mappings
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import exchange, host_origin, route, tunnel_origin, upstream
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.upstreams import ok
from netbird_wire.plugin_settings import write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

EXCHANGE = exchange()


LONG = {"failures": 1, "seconds": 3600, "max_seconds": 3600}
"""An ejection that outlasts a test on the real clock."""


class Dials:
    """A plugin that dials."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> Dialer:
        return HostDialer()


def weighted(*weights: int) -> tuple[Upstream, ...]:
    return tuple(
        upstream(f"http://10.0.0.{number}:80", values={TargetWeight: TargetWeight(weight=weight)})
        for number, weight in enumerate(weights, 1)
    )


class Played:
    """A balancer with a clock of the test's own, and a short name for each upstream."""

    def __init__(self, *weights: int, states: UpstreamStates | None = None, **settings: Any) -> None:
        self.now = 1000.0
        self.counted: Counter[str] = Counter()
        self.route = route(to=weighted(*weights))
        self.balancer = Balancer(
            self.route,
            LoadBalancingSettings(**settings),
            UpstreamStates() if states is None else states,
            clock=lambda: self.now,
            count=lambda name: self.counted.update([name]),
        )

    def pick(self, *tried: int, of: ExchangeView = EXCHANGE) -> int:
        """Return the number of the picked upstream, from 1."""
        upstreams = self.route.upstreams
        left = [item for number, item in enumerate(upstreams, 1) if number not in tried]
        picked = self.balancer.pick(of, left, [upstreams[number - 1] for number in tried])
        return next(number for number, item in enumerate(upstreams, 1) if item is picked)

    def ended(self, number: int, error: Any = None) -> None:
        self.balancer.outcome(self.route.upstreams[number - 1], error)

    def run(self, rounds: int, of: ExchangeView = EXCHANGE) -> list[int]:
        numbers = []
        for _ in range(rounds):
            numbers.append(self.pick(of=of))
            self.ended(numbers[-1])
        return numbers

    def fail(self, number: int, times: int = 1, error: type[Exception] = DialRefused) -> None:
        """Let tries of this upstream fail."""
        others = [other for other in range(1, len(self.route.upstreams) + 1) if other != number]
        for _ in range(times):
            assert self.pick(*others) == number
            self.ended(number, error("x"))


def test_upstreams_take_turns_by_weight() -> None:
    """The turns of a heavy one are spread between those of the others."""
    assert Played(1, 1, 1).run(6) == [1, 2, 3, 1, 2, 3]
    assert Played(5, 1, 1).run(7) == [1, 1, 2, 1, 3, 1, 1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_turns_are_exact(weights: list[int]) -> None:
    """In as many requests as the weights sum up to, each upstream gets its weight."""
    assert Counter(Played(*weights).run(sum(weights))) == dict(enumerate(weights, 1))


def test_chance_follows_the_weights() -> None:
    """Over many requests; every upstream is picked."""
    counts = Counter(Played(9, 1, policy="random").run(2000))
    assert counts[1] > counts[2] > 0


def test_the_fewest_open_requests_win() -> None:
    """Counted for each unit of weight, until the outcome; equal ones take turns."""
    play = Played(1, 1, 2, policy="least_pending")
    assert play.pick() == 3
    assert sorted(play.pick() for _ in range(3)) == [1, 2, 3]
    play.ended(2)
    assert play.pick() == 2
    play.ended(3, UpstreamClosed("x"))
    play.ended(3)
    assert play.pick() == 3


def test_an_address_keeps_its_upstream() -> None:
    """Also while the others come and go, and with the share of its weight."""
    addresses = [exchange(origin=host_origin(f"198.51.100.{number}")) for number in range(200)]
    three, two = Played(1, 1, 1, sticky="source"), Played(1, 1, sticky="source")
    for client in addresses:
        [number] = set(three.run(3, client))
        if number != 3:
            assert two.pick(of=client) == number
    heavy = Counter(Played(9, 1, sticky="source").pick(of=client) for client in addresses)
    assert heavy[1] > heavy[2] > 0


def test_the_address_of_a_network_or_peer_decides() -> None:
    """Clients of one IPv6 network share an upstream, because a client has all its addresses; peers do not."""
    play = Played(*[1] * 8, sticky="source")
    network = [exchange(origin=host_origin(f"2001:db8::{number}")) for number in range(1, 30)]
    assert len({play.pick(of=client) for client in network}) == 1
    peers = [exchange(origin=tunnel_origin(f"fd00::{number}")) for number in range(1, 30)]
    assert len({play.pick(of=client) for client in peers}) > 1


def test_an_upstream_that_cannot_be_reached_is_ejected_for_a_growing_time() -> None:
    """After failures in a row; until it answers again each time is twice as long, up to the longest."""
    play = Played(1, 1, ejection=Ejection(failures=3, seconds=10, max_seconds=25))
    play.fail(1, 2)
    assert play.run(2) == [1, 2]  # answered in between
    play.fail(1, 3)
    assert play.counted == {"load_balancing_ejected": 1}
    for seconds in (10, 20, 25, 25):
        assert set(play.run(6)) == {2}
        play.now += seconds - 0.1
        assert set(play.run(6)) == {2}
        play.now += 0.1
        play.fail(1, error=TlsFailed)
    play.now += 25
    assert set(play.run(6)) == {1, 2}
    play.fail(1, 2)
    assert set(play.run(6)) == {1, 2}


@pytest.mark.parametrize("error", [HeadTimeout, UpstreamClosed, UpstreamOverloaded])
def test_a_client_cannot_have_an_upstream_ejected(error: type[Exception]) -> None:
    """Failures that a request can cause do not count, and do not hide those that do."""
    play = Played(1, 1, ejection=Ejection(failures=2))
    play.fail(1, 10, error)
    assert set(play.run(4)) == {1, 2}
    play.fail(1)
    play.fail(1, 3, error)
    play.fail(1)
    assert set(play.run(4)) == {2}


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_at_most_half_of_the_upstreams_are_left_out(count: int) -> None:
    """The last ones to come back are left out; if all are ejected, all are picked again."""
    play = Played(*[1] * count, ejection=Ejection(failures=1))
    for number in range(1, count):
        play.fail(number)
        play.now += 1
    assert set(play.run(4 * count)) == set(range(1, count + 1)) - set(range(count - 1, count - 1 - count // 2, -1))

    play = Played(*[1] * count, ejection=Ejection(failures=1))
    for number in range(1, count + 1):
        play.fail(number)
    assert {play.pick() for _ in range(4 * count)} == set(range(1, count + 1))


def test_a_last_upstream_is_tried_although_it_is_ejected() -> None:
    """If nothing else is left for an exchange, its try may as well be made."""
    play = Played(1, 1, ejection=Ejection(failures=1))
    play.fail(1)
    assert play.pick(2) == 1


def test_ejection_can_be_switched_off() -> None:
    """Then every upstream takes its turns."""
    play = Played(1, 1, ejection=None)
    play.fail(1, 100)
    assert play.counted == {}
    assert set(play.run(2)) == {1, 2}


def test_an_edit_keeps_the_health_of_upstreams_that_stay() -> None:
    """Also their open requests; what no route leads to any more is forgotten."""
    states = UpstreamStates()
    play = Played(1, 1, states=states, ejection=Ejection(failures=1))
    play.fail(1)
    edited = Played(1, 1, 1, states=states, ejection=Ejection(failures=1))
    assert set(edited.run(6)) == {2, 3}
    assert len(states) == 3
    del play, edited
    gc.collect()  # the test's clock refers to the test's balancer
    assert len(states) == 0


@settings(deadline=None)
@given(st.data())
def test_every_pick_is_a_candidate(data: st.DataObject) -> None:
    """Under any policy, and after any outcomes, something is picked among the candidates."""
    count = data.draw(st.integers(2, 5))
    play = Played(
        *data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count)),
        policy=data.draw(st.sampled_from(["round_robin", "least_pending", "random"])),
        sticky=data.draw(st.sampled_from(["none", "source"])),
        ejection=Ejection(failures=1),
    )
    for _ in range(data.draw(st.integers(1, 20))):
        tried = data.draw(st.sets(st.integers(1, count), max_size=count - 1))
        number = play.pick(*tried)
        assert number not in tried
        play.ended(number, data.draw(st.sampled_from([None, DialRefused("x"), UpstreamClosed("x")])))
        play.now += data.draw(st.integers(0, 20))


# On routes ------------------------------------------------------------------------------------------------------------


def hooks() -> Hooks:
    return load_hooks([(PLUGIN, LoadBalancing()), ("dials", Dials())], core_claims=CORE_CLAIMS)


def wire(settings: dict[str, Any] | None = None, weights: tuple[int, ...] = (1, 1), prefix: str = "/") -> ProxyMapping:
    """A mapping whose targets have one path, as management sends it."""
    mapping = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com")
    if settings is not None:
        write_settings(mapping, PLUGIN, settings)
    for number, weight in enumerate(weights, 1):
        path = PathMapping(path=prefix, target=f"http://10.0.0.{number}/")
        write_settings(path, PLUGIN, {"weight": weight})
        mapping.path.append(path)
    return mapping


def played(
    settings: dict[str, Any] | None = None,
    weights: tuple[int, ...] = (1, 1),
    *,
    answers: Any = (),
    share: Share | None = None,
    **options: Any,
) -> Transcript:
    loaded = hooks()
    decoded = Codec(loaded).decode(wire(settings, weights), source="management").mapping
    proxy = FakeProxy(options=(LoadBalancingOptions.model_validate(options),), share=share or Share())
    return Transcript(decoded, hooks=loaded, proxy=proxy, upstream=answers, cookies=loaded.cookies, notes=loaded.notes)


async def ask(play: Transcript, cookie: bytes = b"", **fields: Any) -> tuple[str, bytes]:
    """The host that answered, and the cookie that was set."""
    headers = [(b"cookie", cookie)] if cookie else []
    answer = await play.request(origin=host_origin(), headers=headers, **{"scheme": "https", **fields})
    assert answer.status == 200
    return play.exchange.tries[-1].upstream.address.host, answer.get(b"set-cookie") or b""


async def test_weights_and_policy_of_a_service_are_used() -> None:
    """The operator's settings hold where the service has none."""
    play = played(weights=(3, 1))
    assert Counter([(await ask(play))[0] for _ in range(8)]) == {"10.0.0.1": 6, "10.0.0.2": 2}
    refused = [DialRefused("x"), ok(), ok(), ok(), ok()]
    play = played({"ejection": LONG}, answers=refused, ejection=None, policy="random")
    first = (await ask(play))[0]
    assert {(await ask(play))[0] for _ in range(3)} == {first}
    assert play.proxy.counters == {"load_balancing_ejected": 1}  # type: ignore[union-attr]


async def test_an_edit_of_a_service_keeps_the_health_of_its_upstreams() -> None:
    """From the mapping in force to its next version, and to no other service's."""
    loaded = hooks()
    codec = Codec(loaded)
    settings = {"ejection": LONG}

    def version(weights: tuple[int, ...], **fields: Any) -> ServiceMapping:
        made = wire(settings, weights)
        made.MergeFrom(ProxyMapping(**fields))
        return codec.decode(made, source="management").mapping

    play = Transcript(version((1, 1)), hooks=loaded, upstream=[DialRefused("x")], notes=loaded.notes)
    await ask(play)
    [away] = {attempt.upstream.address.host for attempt in play.exchange.tries if attempt.error}
    other = version((1, 1), id="svc-2", domain="other.example.com")
    [*reports] = play.routing.apply("management", [version((1, 1, 1), pass_host_header=True), other])
    assert all(report.ok for report in reports)

    answered = {(await ask(play))[0] for _ in range(6)}
    assert answered == {"10.0.0.1", "10.0.0.2", "10.0.0.3"} - {away}
    assert {(await ask(play, host="other.example.com"))[0] for _ in range(4)} == {"10.0.0.1", "10.0.0.2"}


async def test_a_cookie_keeps_the_upstream() -> None:
    """It is set once, only over TLS, and hidden from upstreams, whose own cookies pass; it reveals no address."""
    play = played({"sticky": "cookie"}, answers=[ok(b"", (b"set-cookie", b"a=1"))])
    host, first = await ask(play)
    assert (host, first) == ("10.0.0.1", b"a=1")
    play = played({"sticky": "cookie"})
    host, line = await ask(play)
    name, _, rest = line.partition(b"=")
    value, *attributes = rest.split(b"; ")

    assert name.startswith(b"__Host-netbird_lb_")
    assert attributes == [b"Path=/", b"Secure", b"HttpOnly", b"SameSite=Lax"]
    assert len(value) == 32
    assert value not in (await ask(played({"sticky": "cookie"})))[1]  # the key decides it, not the address alone
    for _ in range(4):
        assert await ask(play, b"a=1; " + name + b"=" + value) == (host, b"")
        assert play.upstreams.last.get(b"cookie") == [b"a=1"]
    assert (await ask(play, scheme="http"))[1] == b""
    assert (await ask(play, name + b"=" + b"0" * 32))[1] != b""


async def test_a_client_of_an_upstream_that_is_away_gets_another_one_and_keeps_it() -> None:
    """The answer of the other upstream sets its cookie."""
    play = played({"sticky": "cookie"}, answers=[ok(), DialRefused("x"), ok(), ok()])
    first, line = await ask(play)
    second, moved = await ask(play, line.partition(b";")[0])
    assert second != first
    assert moved.partition(b";")[0] not in (b"", line.partition(b";")[0])
    assert await ask(play, moved.partition(b";")[0]) == (second, b"")


async def test_proxies_with_one_key_understand_each_other(tmp_path: Path) -> None:
    """With other keys, a cookie is of no use and is replaced."""
    file = tmp_path / "key"
    file.write_bytes(bytes(range(32)))
    one = played({"sticky": "cookie"}, share=Share(1, 2), cookie_key_file=file)
    other = played({"sticky": "cookie"}, share=Share(2, 2), cookie_key_file=file)
    stranger = played({"sticky": "cookie"})
    host, line = await ask(one)
    for _ in range(2):
        assert await ask(other, line.partition(b";")[0]) == (host, b"")
    assert (await ask(stranger, line.partition(b";")[0]))[1] != b""


@pytest.mark.parametrize(
    ("content", "share", "reason"),
    [
        (b"short", Share(), "[load_balancing] cookie_key_file has fewer than 32 bytes"),
        (None, Share(), "[load_balancing] cookie_key_file cannot be read: No such file or directory"),
        ("", Share(1, 2), "sticky = cookie with several workers needs [load_balancing] cookie_key_file"),
    ],
)
def test_a_key_that_cannot_be_used_refuses_the_service(
    tmp_path: Path, content: bytes | str | None, share: Share, reason: str
) -> None:
    """Rather than that its clients lose their upstream from one request to the next."""
    file = tmp_path / "key"
    if isinstance(content, bytes):
        file.write_bytes(content)
    options = {} if content == "" else {"cookie_key_file": file}
    proxy = FakeProxy(options=(LoadBalancingOptions.model_validate(options),), share=share)
    made = route(to=weighted(1, 1), values={LoadBalancingSettings: LoadBalancingSettings(sticky="cookie")})
    with pytest.raises(RouteRefused) as caught:
        hooks().select(made, proxy)
    assert str(caught.value) == reason


async def test_a_single_upstream_has_no_step() -> None:
    """Not even for the cookie."""
    play = played({"sticky": "cookie"}, (1,))
    assert await ask(play) == ("10.0.0.1", b"")
    play.saw("dial http://10.0.0.1:80", "respond 200", "observe 200")


def test_a_mappings_file_has_several_upstreams_of_one_path(tmp_path: Path) -> None:
    """As the page of this plugin shows it."""
    page = (Path(__file__).parents[1] / "README.md").read_text()
    file = tmp_path / "mappings.toml"
    file.write_text(page.partition("```toml\n")[2].partition("```")[0])

    [mapping] = read_mappings(file)
    made = decoded(mapping.wire)

    [spec] = made.routes
    assert [(str(item), item.settings(TargetWeight).weight) for item in spec.upstreams] == [
        ("http://10.0.0.7:8080", 3),
        ("http://10.0.0.8:8080", 1),
    ]
    assert spec.settings(LoadBalancingSettings).policy == "least_pending"


def decoded(mapping: ProxyMapping) -> ServiceMapping:
    return Codec(hooks()).decode(mapping, source="file").mapping


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "fastest"},
        {"sticky": True},
        {"ejection": {"failures": 0}},
        {"ejection": {"seconds": 20, "max_seconds": 10}},
        {"ejection": {"seconds": 3601}},
        {"weights": {}},
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any]) -> None:
    """By both halves, with the same model."""
    with pytest.raises(ValidationError):
        LoadBalancingSettings.from_wire(wire(settings))
    assert "plugin load_balancing cannot use its settings" in decoded(wire(settings)).refused


@pytest.mark.parametrize("weight", [0, 1001, 1.5, "2"])
def test_weights_that_cannot_be_used_are_refused(weight: Any) -> None:
    """A target has a weight from 1 to 1000."""
    mapping = wire(weights=(1,))
    write_settings(mapping.path[0], PLUGIN, {"weight": weight})
    with pytest.raises(ValidationError):
        TargetWeight.from_wire(mapping, mapping.path[0])


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "policy": st.sampled_from(["round_robin", "least_pending", "random"]),
            "sticky": st.sampled_from(["none", "cookie", "source"]),
            "ejection": st.none() | st.fixed_dictionaries({"failures": st.integers(1, 1000)}),
        },
    )
)
def test_settings_survive_the_wire(settings: dict[str, Any]) -> None:
    """A service that sets nothing differs from one that sets the default."""
    made = LoadBalancingSettings.model_validate(settings)
    mapping = ProxyMapping()
    made.to_wire(mapping)
    again = LoadBalancingSettings.from_wire(mapping)
    assert (again, again.model_fields_set) == (made, made.model_fields_set)


def test_management_loads_its_half() -> None:
    """It claims a service's settings and its targets', and sends them only to proxies with the plugin."""
    loaded = load_management([(PLUGIN, ManagementHalf())])
    assert loaded.settings == ((PLUGIN, LoadBalancingSettings),)
    assert loaded.target_settings == ((PLUGIN, TargetWeight),)
