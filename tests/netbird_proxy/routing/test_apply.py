"""Applying: one swap, nothing served wider than it may be, first come first served, the same again is nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbird_proxy import ALLOW
from netbird_proxy.api.errors import RouteClosed
from netbird_proxy.api.model import AccountId, Address, ServiceId, ServiceMapping
from netbird_proxy.pipeline.core_answers import NO_ROUTE, STARTING
from netbird_proxy.pipeline.ending import Environment, FixedAnswer
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import HOST, host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer, Upstreams
from netbird_proxy.upstreams.pools import Pools


async def allow(_exchange: object) -> object:
    return ALLOW


def service(id_: str, host: str = HOST, *, port: int = 80, account: str = "acct-1", **fields: Any) -> ServiceMapping:
    """A mapping whose upstream's port tells versions apart."""
    spec = route(
        service=ServiceId(id_),
        account=AccountId(account),
        host=host,
        domain=host,
        to=upstream(f"http://10.0.0.1:{port}"),
        guarding=fields.pop("guarding", {}),
    )
    return mapping(spec, id=id_, account=account, host=host, **fields)


def routing(hooks: StepHooks | None = None, upstreams: Upstreams | None = None, grace: float = 0.0) -> Routing:
    changes: list[Any] = []
    compiler = Compiler(hooks or StepHooks(), FakeProxy(), Pools(upstreams or Upstreams(), grace=grace), Environment())
    made = Routing(compiler, on_change=changes.append)
    made.changes = changes  # type: ignore[attr-defined]
    return made


def served(made: Routing, host: str = HOST) -> str:
    """Who serves a host: `svc:port`, `closed`, or nothing."""
    found = made.table.match(host, b"/", None)
    if found.spec is not None:
        return f"{found.spec.service}:{found.spec.upstreams[0].address.port}"
    assert isinstance(found.runner, FixedAnswer)
    if found.runner.answer is NO_ROUTE:
        return ""
    assert isinstance(found.runner.answer, RouteClosed)
    return "closed"


async def test_promise_7_what_is_not_in_force_yet_is_not_called_absent() -> None:
    """503 until the first snapshot of every source is in force, however much of it is; 404 from then on."""
    compiler = Compiler(StepHooks(), FakeProxy(), Pools(Upstreams(), grace=0.0), Environment())
    made = Routing(compiler, sources=["management", "file"])

    def unknown() -> object:
        runner = made.table.match("other.example.com", b"/", None).runner
        assert isinstance(runner, FixedAnswer)
        return runner.answer

    assert unknown() is STARTING
    made.update("management", [service("a")])
    assert (served(made), unknown(), made.awaited) == ("a:80", STARTING, ["file", "management"])
    made.in_force("management")
    assert (unknown(), made.awaited) == (STARTING, ["file"])
    made.in_force("file")
    await made.complete()
    assert (served(made), unknown(), made.awaited) == ("a:80", NO_ROUTE, [])
    made.update("management", [], [ServiceId("a")])
    assert served(made) == ""


async def test_same_snapshot_changes_nothing() -> None:
    """Not the table, not a pipeline, not a pool; the reports say the same."""
    upstreams = Upstreams()
    made = routing(upstreams=upstreams)
    first = made.apply("management", [service("a"), service("b", "b.example.com", refused="no")])
    table = made.table

    again = made.apply("management", [service("a"), service("b", "b.example.com", refused="no")])

    assert made.table is table
    assert [(one.service, one.refused, one.changed) for one in again] == [("a", "", False), ("b", "no", False)]
    assert [one.changed for one in first] == [True, True]
    assert len(upstreams.pools) == 1


async def test_change_is_one_assignment() -> None:
    """The old table goes on serving what it served; the new one has all of the change."""
    made = routing()
    made.apply("management", [service("a", port=1), service("b", "b.example.com", port=1)])
    before = made.table

    made.apply("management", [service("a", port=2), service("c", "c.example.com", port=2)])

    assert served(made) == "a:2"
    assert served(made, "b.example.com") == ""
    assert served(made, "c.example.com") == "c:2"
    old = before.match(HOST, b"/", None).spec
    assert old is not None
    assert old.upstreams[0].address.port == 1


async def test_sources_reconcile_only_their_own() -> None:
    """A snapshot of one source removes nothing of another's, even under the same id."""
    made = routing()
    made.apply("file", [service("a", "file.example.com", source="file")])
    made.apply("management", [service("a")])
    made.apply("management", [])
    assert served(made, "file.example.com") == "a:80"
    assert served(made) == ""
    assert made.get("file", ServiceId("a")) is not None
    assert made.get("management", ServiceId("a")) is None
    assert len(made) == 1


async def test_first_owner_of_a_host_keeps_it() -> None:
    """A second mapping, of whatever account or source, is refused and reported; the first is untouched."""
    made = routing()
    made.apply("management", [service("a", port=1)])
    [report] = made.update("management", [service("b", port=2, account="acct-2")])
    [other] = made.apply("file", [service("c", port=3, source="file")])

    assert "is another service's" in report.refused
    assert "a" not in report.refused.split()
    assert other.refused
    assert served(made) == "a:1"


async def test_next_in_line_gets_a_host_that_is_free_again() -> None:
    """And is reported, though it did not change itself."""
    made = routing()
    made.apply("management", [service("a", port=1), service("b", port=2)])
    reports = made.update("management", removed=[ServiceId("a")])
    assert [(one.service, one.refused, one.changed) for one in reports] == [("b", "", True)]
    assert served(made) == "b:2"


async def test_services_can_change_places() -> None:
    """Both move in one change, and neither is in the other's way."""
    made = routing()
    made.apply("management", [service("a", "x.example.com", port=1), service("b", "y.example.com", port=2)])
    reports = made.apply("management", [service("a", "y.example.com", port=1), service("b", "x.example.com", port=2)])
    assert all(one.ok for one in reports)
    assert served(made, "x.example.com") == "b:2"
    assert served(made, "y.example.com") == "a:1"


@pytest.mark.parametrize(
    "bad", [service("a", refused="no plugin understands it"), service("a", guarding={"gate": ("private",)})]
)
async def test_refused_modification_closes_the_older_version(bad: ServiceMapping) -> None:
    """What was open does not stay open because its successor could not be served."""
    made = routing()
    made.apply("management", [service("a")])
    [report] = made.update("management", [bad])
    assert report.refused
    assert served(made) == "closed"
    made.update("management", [service("a", port=81)])
    assert served(made) == "a:81"


async def test_refused_creation_closes_its_host_unless_it_is_anothers() -> None:
    """A host that somebody serves is not closed by who may not have it."""
    made = routing()
    made.apply("management", [service("a"), service("b", refused="no"), service("c", "c.example.com", refused="no")])
    assert served(made) == "a:80"
    assert served(made, "c.example.com") == "closed"


async def test_move_to_a_taken_host_frees_the_old_one() -> None:
    """It is refused there and gone here: the mapping no longer says the old host."""
    made = routing()
    made.apply("management", [service("a", "x.example.com"), service("b", "y.example.com")])
    [report] = made.update("management", [service("a", "y.example.com")])
    assert report.refused
    assert served(made, "x.example.com") == ""
    assert served(made, "y.example.com") == "b:80"


@pytest.mark.parametrize("mode", ["tcp", "udp", "tls"])
async def test_other_modes_are_refused_by_name_and_close_nothing(mode: Any) -> None:
    """A stream service may share its domain with a page, which goes on."""
    made = routing()
    made.apply("management", [service("a")])
    [report] = made.update("management", [service("s", mode=mode)])
    assert report.refused == f"mode {mode} is not served by this proxy yet"
    assert served(made) == "a:80"
    [report] = made.update("management", [service("a", mode=mode)])
    assert report.refused
    assert served(made) == ""


async def test_mapping_without_a_host_is_refused() -> None:
    """There is nothing to close, so the report is all there is."""
    made = routing()
    reports = made.apply("management", [service("a", ""), service("b", "", refused="the domain is no host")])
    assert [one.refused for one in reports] == ["the mapping has no host", "the domain is no host"]
    assert made.table.hosts == {}


async def test_one_bad_mapping_spoils_no_other() -> None:
    """Each is judged alone."""
    made = routing()
    reports = made.apply("management", [service("a", guarding={"gate": ("private",)}), service("b", "b.example.com")])
    assert [one.ok for one in reports] == [False, True]
    assert served(made, "b.example.com") == "b:80"


async def test_changes_are_told_once_they_are_in_force() -> None:
    """Whoever re-admits open exchanges hears which services are others now, gone ones included."""
    made = routing()
    changes: list[frozenset[str]] = made.changes  # type: ignore[attr-defined]
    made.apply("management", [service("a"), service("b", "b.example.com")])
    made.apply("management", [service("a"), service("b", "b.example.com")])
    made.apply("management", [service("a", port=81)])
    assert changes == [frozenset("ab"), frozenset("ab")]
    assert made.update("management", removed=[ServiceId("never was")]) == []
    assert len(changes) == 2


async def test_pools_are_counted_and_retired_after_the_last_route() -> None:
    """Two routes to one place share a pool; a change that keeps the place keeps it; accounts never share."""
    upstreams = Upstreams()
    made = routing(upstreams=upstreams)
    made.apply("management", [service("a"), service("b", "b.example.com"), service("c", "c.example.com", account="x")])
    assert len(upstreams.pools) == 2

    made.update("management", [replace(service("a"), digest=b"changed")], [ServiceId("b")])
    await _settle()
    assert [pool.retired for pool in upstreams.pools] == [False, False]

    made.apply("management", [service("c", "c.example.com", account="x")])
    await _settle()
    assert [pool.retired for pool in upstreams.pools] == [True, False]
    assert len(made.compiler._pools) == 1

    made.compiler._pools.close()
    assert all(pool.retired for pool in upstreams.pools)
    assert len(made.compiler._pools) == 0


async def test_pool_that_is_wanted_again_within_its_grace_stays() -> None:
    """A service that is edited twice keeps its connections."""
    upstreams = Upstreams()
    made = routing(upstreams=upstreams, grace=60.0)
    made.apply("management", [service("a")])
    made.apply("management", [])
    made.apply("management", [service("a")])
    assert len(upstreams.pools) == 1
    assert not upstreams.pools[0].retired
    made.apply("management", [])
    made.compiler._pools.close()
    assert upstreams.pools[0].retired


class OwnDialer:
    """A service's own, as plugins make them; counts how often it is compared."""

    compared = 0

    async def dial(self, protocol_factory: Any, address: Address, *, timeout: float) -> Any:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        OwnDialer.compared += 1
        return self is other

    def __hash__(self) -> int:
        return id(self)


def test_one_more_service_of_a_busy_upstream_costs_what_the_first_did() -> None:
    """Thousands of services may lead to one address, each by a dialer of its own: none is compared with all others."""
    OwnDialer.compared = 0
    pools = Pools(Upstreams(), grace=0.0)
    made = [pools.take(AccountId("acct-1"), upstream("http://10.0.0.1:80"), OwnDialer()) for _ in range(500)]
    assert len(set(map(id, made))) == len(pools) == 500
    assert OwnDialer.compared <= 500
    pools.close()
    assert len(pools) == 0


async def test_different_ways_to_dial_share_no_pool() -> None:
    """The same address with other TLS rules is another pool, in the same account."""
    upstreams = Upstreams()
    made = routing(upstreams=upstreams)
    lax = route(service=ServiceId("b"), host="b.example.com", domain="b.example.com")
    lax = replace(lax, upstreams=(upstream("http://10.0.0.1:80", skip_tls_verify=True),))
    made.apply("management", [service("a"), mapping(lax, id="b", host="b.example.com")])
    assert len(upstreams.pools) == 2
    made.apply("management", [service("a")])
    await _settle()
    assert [pool.retired for pool in upstreams.pools] == [False, True]


async def test_open_exchange_keeps_its_upstream() -> None:
    """A change under way reaches the next request, not the one that is on its way."""
    hold = asyncio.Event()
    play = Transcript(service("a", port=1), upstream=[ScriptedAnswer(hold=hold, body=(b"old",)), ScriptedAnswer()])
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        first = group.create_task(play.request(origin=host_origin()))
        await asyncio.sleep(0)
        play.routing.apply("management", [service("a", port=2)])
        second = await play.request(origin=host_origin())
        hold.set()
    assert first.result().body == b"old"
    assert second.status == 200
    assert [str(one.tries[0].upstream.address) for one in play.observed] == ["10.0.0.1:2", "10.0.0.1:1"]


async def test_closed_routing_serves_nothing() -> None:
    """On the way out every host is nowhere."""
    made = routing()
    made.apply("management", [service("a")])
    made.close()
    assert served(made) == ""
    assert [one.mapping.id for one in made] == ["a"]


IDS = ["a", "b", "c"]
HOSTS = ["x.example.com", "y.example.com"]
MAPPING = st.builds(
    lambda id_, host, port, bad: service(id_, host, port=port, refused="no" if bad else ""),
    st.sampled_from(IDS),
    st.sampled_from(HOSTS),
    st.integers(1, 2),
    st.booleans(),
)
MOVE = st.one_of(
    st.tuples(st.just("apply"), st.lists(MAPPING, max_size=3, unique_by=lambda one: one.id)),
    st.tuples(st.just("update"), st.lists(MAPPING, max_size=2)),
    st.tuples(st.just("remove"), st.lists(st.sampled_from(IDS), max_size=2)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MOVE, max_size=6))
def test_any_history_leaves_what_its_last_state_says(moves: list[tuple[str, Any]]) -> None:
    """Whatever happened before: one owner a host, first come; others refused; closed where the owner is refused;
    nothing that is not held is served; every pool in use is counted."""

    async def play() -> None:
        upstreams = Upstreams()
        made = routing(upstreams=upstreams)
        line: dict[str, list[str]] = {host: [] for host in HOSTS}
        state: dict[str, ServiceMapping] = {}

        def leave(id_: str) -> None:
            for waiting in line.values():
                if id_ in waiting:
                    waiting.remove(id_)

        for kind, what in moves:
            gone = [id_ for id_ in state if id_ not in {one.id for one in what}] if kind == "apply" else []
            if kind == "remove":
                gone = [id_ for id_ in dict.fromkeys(what) if id_ in state]
                made.update("management", removed=[ServiceId(one) for one in what])
                what = []
            elif kind == "apply":
                made.apply("management", what)
            else:
                made.update("management", what)
            for id_ in gone:
                leave(id_)
                del state[id_]
            latest = {one.id: one for one in what}
            for one in latest.values():
                if one.id in state and state[one.id].host != one.host:
                    leave(one.id)
            for one in latest.values():
                state[one.id] = one
                if one.id not in line[one.host]:
                    line[one.host].append(one.id)

        for host in HOSTS:
            owner = state[line[host][0]] if line[host] else None
            if owner is None:
                assert served(made, host) == ""
            elif owner.refused:
                assert served(made, host) == "closed"
            else:
                assert served(made, host) == f"{owner.id}:{owner.routes[0].upstreams[0].address.port}"
        for one in made:
            owns = line[one.mapping.host][0] == one.mapping.id
            assert bool(one.refused) == (not owns or bool(one.mapping.refused))
        assert {one.mapping.id for one in made} == set(state)
        await _settle()
        in_use = {
            str(one.mapping.routes[0].upstreams[0]) for one in made if one.compiled is not None and not one.refused
        }
        assert {str(pool.upstream) for pool in upstreams.pools if not pool.retired} == in_use
        made.compiler._pools.close()

    asyncio.run(play())


async def _settle() -> None:
    """Let timers with no delay run."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.002, done.set)
    await done.wait()
