"""Applying, against a model: two sources, three accounts, hosts that move between them, good and bad versions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netbird_proxy.api.errors import RouteClosed
from netbird_proxy.api.model import AccountId, ServiceId, ServiceMapping
from netbird_proxy.api.steps import Guard
from netbird_proxy.pipeline.core_answers import NO_ROUTE
from netbird_proxy.pipeline.ending import Environment, FixedAnswer
from netbird_proxy.pipeline.pipeline import Pipeline
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks
from netbird_proxy.testing.upstreams import Upstreams
from netbird_proxy.upstreams.pools import Pools
from tests.netbird_proxy.routing.test_apply import allow

SOURCES = ("management", "file")
IDS = ("a", "b", "c")
HOSTS = ("x.example.com", "y.example.com", "z.example.com")
ACCOUNTS = ("acct-1", "acct-2", "acct-3")
Key = tuple[str, str]


def version(id_: str, host: str, account: str, port: int, kind: str) -> ServiceMapping:
    """One version of a service. `bad` ones are refused by the codec, `unguarded` ones when they are compiled."""
    spec = route(
        service=ServiceId(id_),
        account=AccountId(account),
        host=host,
        domain=host,
        to=upstream(f"http://10.0.0.1:{port}"),
        guarding={"nobody": ("private",)} if kind == "unguarded" else {},
    )
    fields: dict[str, Any] = {"mode": "tcp"} if kind == "stream" else {}
    return mapping(spec, id=id_, account=account, host=host, refused="no" if kind == "bad" else "", **fields)


VERSION = st.builds(
    version,
    st.sampled_from(IDS),
    st.sampled_from(HOSTS),
    st.sampled_from(ACCOUNTS),
    st.integers(1, 2),
    st.sampled_from(("good", "good", "good", "bad", "unguarded", "stream")),
)
SNAPSHOT = st.lists(VERSION, max_size=3, unique_by=lambda one: one.id)


def from_(source: str, mappings: list[ServiceMapping]) -> list[ServiceMapping]:
    return [replace(one, source=source) for one in mappings]


class Applying(RuleBasedStateMachine):
    """The model keeps, for each host, who waits for it in which order; the file's give way to management's."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.upstreams = Upstreams()
        self.told: list[frozenset[ServiceId]] = []
        hooks = StepHooks(restrict=[("gate", Guard(allow))])  # type: ignore[arg-type]
        self.pools = Pools(self.upstreams, grace=0.0)
        self.routing = Routing(Compiler(hooks, FakeProxy(), self.pools, Environment()), on_change=self.told.append)
        self.state: dict[Key, ServiceMapping] = {}
        self.lines: dict[str, list[Key]] = {host: [] for host in HOSTS}
        self.tables = [(self.routing.table, dict(self.routing.table.hosts))]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self._in_loop(self.pools.close)
            self.loop.close()

    def _in_loop(self, call: Any, *args: Any) -> Any:
        """Run it where there is a loop, and let timers without delay run after it."""

        async def run() -> Any:
            found = call(*args)
            for _ in range(3):
                await asyncio.sleep(0)
            done = asyncio.Event()
            asyncio.get_running_loop().call_later(0.001, done.set)
            await done.wait()
            return found

        return self.loop.run_until_complete(run())

    # What happens -----------------------------------------------------------------------------------------------------

    @rule(source=st.sampled_from(SOURCES), snapshot=SNAPSHOT)
    def apply(self, source: str, snapshot: list[ServiceMapping]) -> None:
        given = from_(source, snapshot)
        self._in_loop(self.routing.apply, source, given)
        gone = [key for key in self.state if key[0] == source and key[1] not in {one.id for one in given}]
        self._model(source, given, gone)

    @rule(source=st.sampled_from(SOURCES), changed=SNAPSHOT, removed=st.lists(st.sampled_from(IDS), max_size=2))
    def update(self, source: str, changed: list[ServiceMapping], removed: list[str]) -> None:
        given = from_(source, changed)
        self._in_loop(self.routing.update, source, given, [ServiceId(one) for one in removed])
        gone = [(source, id_) for id_ in dict.fromkeys(removed) if id_ not in {one.id for one in given}]
        self._model(source, given, gone)

    @rule(source=st.sampled_from(SOURCES))
    def apply_the_same_again(self, source: str) -> None:
        """A snapshot that says what is in force: not the table, not a pipeline, not a pool, and nobody is told."""
        table, told, pools = self.routing.table, len(self.told), len(self.upstreams.pools)
        reports = self._in_loop(
            self.routing.apply, source, [one for key, one in self.state.items() if key[0] == source]
        )
        assert self.routing.table is table
        assert (len(self.told), len(self.upstreams.pools)) == (told, pools)
        assert not any(report.changed for report in reports)

    def _model(self, source: str, given: list[ServiceMapping], gone: list[Key]) -> None:
        for key in gone:
            self._leave(key)
            self.state.pop(key, None)
        for one in given:
            old = self.state.get((source, one.id))
            if old is not None and (old.host != one.host or one.mode != "http"):
                self._leave((source, one.id))
        for one in given:
            key = (source, str(one.id))
            self.state[key] = one
            line = self.lines[one.host]
            if one.mode == "http" and key not in line:
                yielding = [at for at, other in enumerate(line) if other[0] == "file" and source != "file"]
                line.insert(yielding[0] if yielding else len(line), key)

    def _leave(self, key: Key) -> None:
        for line in self.lines.values():
            if key in line:
                line.remove(key)

    # What holds -------------------------------------------------------------------------------------------------------

    @invariant()
    def each_host_is_its_owners(self) -> None:
        """Served by the first in line as its last version says, closed where that one is refused, nowhere without."""
        for host, line in self.lines.items():
            owner = self.state[line[0]] if line else None
            found = self.routing.table.match(host, b"/", None)
            if owner is None:
                assert isinstance(found.runner, FixedAnswer)
                assert found.runner.answer is NO_ROUTE
            elif _is_good(owner):
                assert found.spec is not None
                assert (found.spec.service, found.spec.account) == (owner.id, owner.account)
                assert found.spec.upstreams == owner.routes[0].upstreams
                assert isinstance(found.runner, Pipeline)
                assert [step.plugin for step in found.runner.restrict] == ["gate"]
            else:
                assert isinstance(found.runner, FixedAnswer)  # no step, and nothing to dial
                assert isinstance(found.runner.answer, RouteClosed)

    @invariant()
    def refused_are_told(self) -> None:
        """Whoever is bad, or waits behind another, and nobody else; the latter holds nothing that was compiled."""
        assert {(one.mapping.source, str(one.mapping.id)) for one in self.routing} == set(self.state)
        for one in self.routing:
            key = (one.mapping.source, str(one.mapping.id))
            owns = self.lines[one.mapping.host][:1] == [key]
            assert one.mapping == self.state[key]
            assert bool(one.refused) is not (owns and _is_good(one.mapping))
            assert (one.compiled is not None) is owns

    @invariant()
    def pools_are_those_of_what_is_served(self) -> None:
        """One for each account and place; none is left behind, and none is shared between accounts."""
        owners = [self.state[line[0]] for line in self.lines.values() if line]
        wanted = {(one.account, str(one.routes[0].upstreams[0])) for one in owners if _is_good(one)}
        assert len(self.pools) == len(wanted)
        left = [pool.upstream for pool in self.upstreams.pools if not pool.retired]
        assert sorted(map(str, left)) == sorted(place for _, place in wanted)

    @invariant()
    def tables_are_replaced_and_never_changed(self) -> None:
        """Whoever took one goes on by it."""
        table = self.routing.table
        assert set(table.hosts) == {host for host, line in self.lines.items() if line}
        if table is not self.tables[-1][0]:
            self.tables.append((table, dict(table.hosts)))
        for old, hosts in self.tables:
            assert old.hosts.keys() == hosts.keys()
            assert all(old.hosts[host] is routes for host, routes in hosts.items())


def _is_good(one: ServiceMapping) -> bool:
    return not one.refused and one.mode == "http" and "nobody" not in one.routes[0].guarding


TestApplying = Applying.TestCase
TestApplying.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
