"""From mappings to the routing table: changed mappings are compiled, then a single assignment puts them all in force.

No request sees half of a change. A refused mapping gets a closed route; its older version is never left in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import structlog

from netbird_proxy.api.errors import RouteRefused
from netbird_proxy.api.model import AccountId, ServiceId, ServiceMapping
from netbird_proxy.routing.compile import Compiled, Compiler
from netbird_proxy.routing.table import HostRoutes, Route, Table

log = structlog.get_logger("netbird_proxy.routing")

YIELDING = "file"
"""The source whose mappings yield a host to those of another source."""

LIMIT = 100_000
"""Maximum number of mappings; a further one is refused."""

Key = tuple[str, ServiceId]
"""A mapping's source and id: two sources may use the same id."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an apply for a mapping.

    Attributes:
        refused: the reason why it is not served, in a sentence for management; empty if it is served.
        changed: true if this apply changed it; false for a mapping that is equal to the one in force.
    """

    service: ServiceId
    account: AccountId
    refused: str = ""
    changed: bool = True

    @property
    def ok(self) -> bool:
        return not self.refused


@dataclass(slots=True)
class AppliedMapping:
    """A mapping in its present state. `compiled` is None while its host belongs to another mapping, or it has none."""

    mapping: ServiceMapping
    refused: str = ""
    compiled: Compiled | None = None

    def report(self, *, changed: bool) -> Report:
        return Report(self.mapping.id, self.mapping.account, self.refused, changed)


class Routing:
    """The mappings of all sources, and the table that is compiled from them.

    Attributes:
        table: the table in force. It is replaced as a whole, so an exchange must read it only once.
    """

    def __init__(
        self,
        compiler: Compiler,
        *,
        on_change: Callable[[frozenset[ServiceId]], None] | None = None,
        limit: int = LIMIT,
        count: Callable[[str], None] = lambda _name: None,
        sources: Collection[str] = (),
    ) -> None:
        """Args:
        sources: sources whose first snapshot is awaited. Until all are in force, a host or path without a route is
            answered 503 with `Retry-After` instead of 404, because it may still appear.
        on_change: called after each assignment, with the services whose routes have changed or are gone.
        limit: maximum number of mappings, including refused ones; a further one is refused and not kept.
        count: adds 1 to a counter of the process.
        """
        self.compiler = compiler
        self._limit = limit
        self.count = count
        self.on_change = on_change
        self._awaited = set(sources)
        self._complete = asyncio.Event()
        if not sources:
            self._complete.set()
        self.table = Table({}, self._unknown())
        self._applied: dict[Key, AppliedMapping] = {}
        self._claims: dict[str, list[Key]] = {}  # folded host → mappings that claim it, the owner first

    def __iter__(self) -> Iterator[AppliedMapping]:
        return iter(self._applied.values())

    def __len__(self) -> int:
        return len(self._applied)

    def get(self, source: str, service: ServiceId) -> AppliedMapping | None:
        return self._applied.get((source, service))

    def apply(self, source: str, mappings: Iterable[ServiceMapping]) -> list[Report]:
        """Replace all mappings of a source. Applying equal mappings again changes nothing."""
        snapshot = list(mappings)
        ids = {mapping.id for mapping in snapshot}
        gone = [service for origin, service in self._applied if origin == source and service not in ids]
        return self.update(source, snapshot, gone)

    def update(
        self, source: str, changed: Iterable[ServiceMapping] = (), removed: Iterable[ServiceId] = ()
    ) -> list[Report]:
        """Change some mappings of a source, all at once.

        Returns:
            A report for each of `changed`, in order, then one for each other mapping whose state has changed.
        """
        latest = {mapping.id: mapping for mapping in changed}
        dirty: dict[Key, None] = {}
        hosts: dict[str, None] = {}
        dropped: list[AppliedMapping] = []
        for service in removed:
            if service not in latest and (applied := self._applied.pop((source, service), None)) is not None:
                self._unclaim((source, service), applied.mapping, hosts)
                dropped.append(applied)
        fresh = [mapping for mapping in latest.values() if not self._same(source, mapping)]
        # All mappings leave their old hosts before any claims a new one, so that two services can swap hosts.
        for mapping in fresh:
            old = self._applied.get((source, mapping.id))
            if old is not None and old.mapping.host != mapping.host:
                self._unclaim((source, mapping.id), old.mapping, hosts)
        surplus: dict[ServiceId, Report] = {}
        for mapping in fresh:
            key = (source, mapping.id)
            if key not in self._applied and len(self._applied) >= self._limit:
                surplus[mapping.id] = Report(mapping.id, mapping.account, f"this proxy keeps {self._limit} services")
                self.count("services_refused")
                continue
            dirty[key] = None
            if (old := self._applied.get(key)) is not None:
                dropped.append(old)
            self._applied[key] = AppliedMapping(mapping)
            if mapping.mode == "http" and mapping.host:
                claims = self._claims.setdefault(mapping.host, [])
                if key not in claims:
                    yielding = [claim for claim in claims if claim[0] == YIELDING and source != YIELDING]
                    claims.insert(claims.index(yielding[0]) if yielding else len(claims), key)
                hosts[mapping.host] = None
            elif old is not None:
                self._unclaim(key, old.mapping, hosts)
        for host in hosts:
            for key in self._claims.get(host, ()):
                if key not in dirty and self._ownership_changed(key, host):
                    dirty[key] = None
                    dropped.append(self._applied[key])
                    self._applied[key] = AppliedMapping(self._applied[key].mapping)
        for key in dirty:
            self._decide(key)
        if hosts:
            self._swap(hosts)
        for applied in dropped:
            if applied.compiled is not None:
                self.compiler.drop(applied.compiled)
        if self.on_change is not None and (dropped or dirty):
            self.on_change(frozenset([*(applied.mapping.id for applied in dropped), *(key[1] for key in dirty)]))
        reports = [
            surplus.get(service) or self._applied[source, service].report(changed=(source, service) in dirty)
            for service in latest
        ]
        reports += [
            self._applied[key].report(changed=True) for key in dirty if key[0] != source or key[1] not in latest
        ]
        return reports

    @property
    def awaited(self) -> list[str]:
        """The sources whose first snapshot is not in force yet."""
        return sorted(self._awaited)

    def in_force(self, source: str) -> None:
        """Record that a source's first snapshot is completely applied. Later calls change nothing."""
        self._awaited.discard(source)
        if not self._awaited and not self._complete.is_set():
            self._complete.set()
            self.table = Table(self.table.hosts, self._unknown())

    async def complete(self) -> None:
        """Wait until the first snapshot of every source is in force."""
        await self._complete.wait()

    def _unknown(self) -> Route:
        return self.compiler.no_route if self._complete.is_set() else self.compiler.starting

    def judge(self, mapping: ServiceMapping) -> str:
        """The reason why a mapping would be refused, whichever mapping owns its host; empty if it would be served.

        Changes nothing.
        """
        if reason := _unservable(mapping):
            return reason
        try:
            self.compiler.drop(self.compiler.compile(mapping))
        except RouteRefused as refusal:
            return str(refusal)
        return ""

    def close(self) -> None:
        """Stop serving: every host is answered as if it had no route."""
        self.table = Table({}, self.compiler.no_route)

    def _same(self, source: str, mapping: ServiceMapping) -> bool:
        old = self._applied.get((source, mapping.id))
        return old is not None and (old.mapping.digest, old.mapping.host, old.mapping.refused) == (
            mapping.digest,
            mapping.host,
            mapping.refused,
        )

    def _unclaim(self, key: Key, mapping: ServiceMapping, hosts: dict[str, None]) -> None:
        claims = self._claims.get(mapping.host)
        if claims is not None and key in claims:
            claims.remove(key)
            hosts[mapping.host] = None
            if not claims:
                del self._claims[mapping.host]

    def _ownership_changed(self, key: Key, host: str) -> bool:
        return (self._claims[host][0] == key) != (self._applied[key].compiled is not None)

    def _decide(self, key: Key) -> None:
        """Compile a mapping, or record why it is refused. A refused mapping that owns its host gets a closed route."""
        applied = self._applied[key]
        mapping = applied.mapping
        if reason := _unservable(mapping):
            applied.refused = mapping.refused or reason
        elif self._claims[mapping.host][0] != key:
            applied.refused = mapping.refused or f"the host {mapping.host} is another service's"
        else:
            try:
                applied.compiled = self.compiler.compile(mapping)
            except RouteRefused as refusal:
                applied.refused = str(refusal)
                applied.compiled = self.compiler.closed(mapping, applied.refused)
        if applied.refused:
            log.warning("mapping.refused", service=mapping.id, account=mapping.account, reason=applied.refused)

    def _swap(self, changed: Iterable[str]) -> None:
        hosts: dict[str, HostRoutes] = dict(self.table.hosts)
        for host in changed:
            compiled = self._applied[claims[0]].compiled if (claims := self._claims.get(host)) else None
            if compiled is None:
                hosts.pop(host, None)
            else:
                hosts[host] = compiled.routes
        self.table = Table(hosts, self._unknown())


def _unservable(mapping: ServiceMapping) -> str:
    """The reason why a mapping can never be in the table; empty if it can."""
    if mapping.mode != "http":
        return f"mode {mapping.mode} is not served by this proxy yet"
    return "" if mapping.host else "the mapping has no host"
