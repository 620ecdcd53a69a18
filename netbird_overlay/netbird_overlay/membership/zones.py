"""The account's own DNS zones, as the network map has them: answers without any query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from netbird_overlay.members import plain_address
from netbird_wire.management_pb2 import CustomZone

A, CNAME, AAAA = 1, 5, 28
MAX_CHAIN = 8
"""Maximum number of aliases that are followed."""
MAX_RECORDS = 200_000
"""Maximum number of records of all zones; further ones are left out."""


class Outcome(Enum):
    """The result of a look-up."""

    FOUND = "found"
    """The name has these addresses."""
    EMPTY = "empty"
    """The name exists, without addresses of the requested families."""
    MISSING = "missing"
    """The zone is authoritative, and the name does not exist."""
    ALIAS = "alias"
    """The name is an alias of one outside the zones, which must be looked up elsewhere."""
    ELSEWHERE = "elsewhere"
    """No zone decides: the next resolver is asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    outcome: Outcome
    addresses: tuple[str, ...] = ()
    alias: str = ""


ELSEWHERE = Answer(Outcome.ELSEWHERE)


def fold(name: str) -> str:
    """Return a name in lower case, without a final dot."""
    return name.lower().rstrip(".")


class Zones:
    """An immutable set of zones. A zone without records is none; a single zone is authoritative."""

    def __init__(self, zones: Iterable[CustomZone] = ()) -> None:
        self._records: dict[str, dict[int, list[str]]] = {}
        self._authoritative: dict[str, bool] = {}
        filled = [zone for zone in zones if zone.Records and fold(zone.Domain)]
        left = MAX_RECORDS
        for zone in filled:
            domain = fold(zone.Domain)
            self._authoritative[domain] = len(filled) == 1 or not zone.NonAuthoritative
            for record in zone.Records:
                name = fold(record.Name)
                inside = name == domain or name.endswith("." + domain)
                if not left or record.Class not in ("", "IN") or not inside:
                    continue
                left -= 1
                value = fold(record.RData) if record.Type == CNAME else record.RData
                values = self._records.setdefault(name, {}).setdefault(record.Type, [])
                if value not in values:
                    values.append(value)

    def zone_of(self, name: str) -> str | None:
        """Return the longest zone that contains a folded name."""
        while name:
            if name in self._authoritative:
                return name
            name = name.partition(".")[2]
        return None

    def lookup(self, name: str, *, ipv6: bool = True) -> Answer:
        """Look up the addresses of a name, IPv4 first. `ipv6` also returns IPv6 addresses."""
        name = fold(name)
        kinds = (A, AAAA) if ipv6 else (A,)
        for hops in range(MAX_CHAIN + 1):
            zone = self.zone_of(name)
            if zone is None:
                return Answer(Outcome.ALIAS, alias=name) if hops else ELSEWHERE
            records = self._records.get(name) or self._records.get("*." + name.partition(".")[2])
            if records is None:
                if self._authoritative[zone]:
                    return Answer(Outcome.MISSING)
                return Answer(Outcome.ALIAS, alias=name) if hops else ELSEWHERE
            addresses = tuple(address for kind in kinds for address in _addresses(records.get(kind, ()), kind))
            if addresses:
                return Answer(Outcome.FOUND, addresses)
            aliases = records.get(CNAME)
            if not aliases:
                return Answer(Outcome.EMPTY)
            name = aliases[0]
        return Answer(Outcome.EMPTY)  # a loop of aliases


def _addresses(values: Iterable[str], kind: int) -> Iterator[str]:
    for value in values:
        address = plain_address(value)
        if address is not None and (":" in address) == (kind == AAAA):
            yield address
