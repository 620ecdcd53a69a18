"""Mappings in, a table out: what changed is compiled, then one assignment puts all of it in force.

Nobody sees half of a change. What is refused is closed, never left as it was, and never opened.
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
"""The source whose mappings give way where another source wants their host."""

LIMIT = 100_000

Key = tuple[str, ServiceId]
"""A mapping's source and id: two sources may use the same id."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one mapping.

    Attributes:
        refused: why it is not served, in one sentence for management; empty when it is.
        changed: whether this apply changed it; an equal mapping that came again did not.
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
    """One mapping as it stands. `compiled` is None while its host is another's, or it has none."""

    mapping: ServiceMapping
    refused: str = ""
    compiled: Compiled | None = None

    def report(self, *, changed: bool) -> Report:
        return Report(self.mapping.id, self.mapping.account, self.refused, changed)


class Routing:
    """The mappings of all sources, and the table made of them.

    Attributes:
        table: what is in force. Replaced whole; whoever matches takes it once.
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
        sources: those whose first snapshot is awaited. Until each is in force, a host or path without a route is
            answered 503 with `Retry-After`, and not 404: nobody knows yet that it does not exist.
        on_change: called after each assignment with the services whose routes are others now, or gone.
        limit: mappings that are kept, refused ones included; one more is refused and forgotten.
        count: adds one to a counter of the process.
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
        self._claims: dict[str, list[Key]] = {}  # folded host → who wants it, its owner first

    def __iter__(self) -> Iterator[AppliedMapping]:
        return iter(self._applied.values())

    def __len__(self) -> int:
        return len(self._applied)

    def get(self, source: str, service: ServiceId) -> AppliedMapping | None:
        return self._applied.get((source, service))

    def apply(self, source: str, mappings: Iterable[ServiceMapping]) -> list[Report]:
        """Make a source's mappings exactly these. Applying the same ones again changes nothing."""
        wanted = list(mappings)
        ids = {mapping.id for mapping in wanted}
        gone = [service for origin, service in self._applied if origin == source and service not in ids]
        return self.update(source, wanted, gone)

    def update(
        self, source: str, changed: Iterable[ServiceMapping] = (), removed: Iterable[ServiceId] = ()
    ) -> list[Report]:
        """Change some of a source's mappings, all at once.

        Returns:
            one report for each of `changed`, in order, then one for each other mapping whose state this changed.
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
        # All leave their old hosts before any takes a new one, so that two services can change places.
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
                    yielding = [one for one in claims if one[0] == YIELDING and source != YIELDING]
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
        """The whole of a source's first snapshot was applied. Later calls change nothing."""
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
        """Why a mapping would be refused, whoever else wants its host; empty if it would be served. Changes nothing."""
        if reason := _unservable(mapping):
            return reason
        try:
            self.compiler.drop(self.compiler.compile(mapping))
        except RouteRefused as refusal:
            return str(refusal)
        return ""

    def close(self) -> None:
        """Serve nothing more: every host answers as if it had no route."""
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
        """Compile one mapping, or say why not. A refused one that owns its host closes it."""
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
    """Why a mapping has no place in the table at all; empty if it has."""
    if mapping.mode != "http":
        return f"mode {mapping.mode} is not served by this proxy yet"
    return "" if mapping.host else "the mapping has no host"
