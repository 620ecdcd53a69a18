"""Who may come in by address: networks first, then countries; the overlay obeys networks alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from netbird_proxy import ALLOW, Decision, Deny, Origin, RouteRefused
from netbird_proxy.api.errors import PluginFailed
from netbird_proxy.defaults.access_restrictions import AccessRestrictions, AccessRestrictionsOptions
from netbird_proxy.defaults.access_restrictions.networks import Networks
from netbird_proxy.defaults.access_restrictions.settings import RestrictionSettings
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import exchange, host_origin, route, tunnel_origin
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

from .mmdb import country, database

PLUGIN = "access_restrictions"
GERMANY, FRANCE, NOWHERE = "192.0.2.1", "198.51.100.1", "203.0.113.1"
WORLD = database(
    {
        "192.0.2.0/24": country("DE"),
        "198.51.100.0/24": country("FR"),
        "2001:db8:1::/48": country("DE"),
        "198.18.0.0/15": {"country": "no map"},
    }
)


def wire(**lists: Any) -> ProxyMapping:
    found = ProxyMapping(id="svc-1", account_id="acct-1", domain="app.example.com")
    found.path.append(PathMapping(path="/", target="http://10.0.0.7/"))
    mode = lists.pop("crowdsec_mode", "")
    for name, entries in lists.items():
        getattr(found.access_restrictions, name).extend(entries)
    if mode:
        found.access_restrictions.crowdsec_mode = mode
    return found


def loaded() -> Hooks:
    return load_hooks([(PLUGIN, AccessRestrictions)], core_claims=CORE_CLAIMS)


Asked = Any


@asynccontextmanager
async def asking(tmp_path: Path, world: bytes | None = WORLD, **lists: Any) -> AsyncIterator[Asked]:
    """A function that asks the guard of a service with these lists about an address or an origin."""
    file = tmp_path / "world.mmdb"
    if world is not None:
        file.write_bytes(world)
    options = AccessRestrictionsOptions(geo_database=file if world is not None else None, geo_interval=0.02)
    hooks, proxy = loaded(), FakeProxy(options=[options])
    async with hooks.running(proxy):
        spec = route(values={RestrictionSettings: RestrictionSettings.from_wire(wire(**lists))})
        ((_, guard),) = hooks.restrict(spec, proxy)

        async def ask(address: str, origin: Origin | None = None) -> Decision:
            made = exchange(origin=origin or host_origin("203.0.113.9"))
            made.client_address = address
            return await guard.check(made)  # type: ignore[return-value]

        yield ask


def code(decision: Decision) -> str:
    assert decision is ALLOW or (isinstance(decision, Deny) and decision.status == 403)
    return "" if decision is ALLOW else decision.code


# Networks -------------------------------------------------------------------------------------------------------------

ALLOWED, BLOCKED = ("10.0.0.0/8", "2001:db8::/32"), ("10.1.0.0/16", "2001:db8:bad::/48")


@pytest.mark.parametrize(
    ("lists", "address", "verdict"),
    [
        ({"allowed_cidrs": ALLOWED}, "10.9.9.9", ""),
        ({"allowed_cidrs": ALLOWED}, "11.0.0.1", "ip_restricted"),
        ({"allowed_cidrs": ALLOWED}, "2001:db8::1", ""),
        ({"allowed_cidrs": ALLOWED}, "2001:db9::1", "ip_restricted"),
        ({"allowed_cidrs": ALLOWED}, "::ffff:10.9.9.9", ""),
        ({"allowed_cidrs": ALLOWED[:1]}, "2001:db8::1", "ip_restricted"),
        ({"allowed_cidrs": ["::ffff:10.0.0.0/104"]}, "10.9.9.9", ""),
        ({"allowed_cidrs": ["10.9.9.9/8"]}, "10.1.2.3", ""),
        ({"allowed_cidrs": ["0.0.0.0/0"]}, "255.255.255.255", ""),
        ({"allowed_cidrs": ["0.0.0.0/0"]}, "::1", "ip_restricted"),
        ({"blocked_cidrs": BLOCKED}, "10.1.0.1", "ip_restricted"),
        ({"blocked_cidrs": BLOCKED}, "10.2.0.1", ""),
        ({"blocked_cidrs": BLOCKED}, "2001:db8:bad::1", "ip_restricted"),
        ({"blocked_cidrs": ["10.1.0.0/16"]}, "::ffff:10.1.0.1", "ip_restricted"),
        ({"allowed_cidrs": ALLOWED, "blocked_cidrs": BLOCKED}, "10.1.0.1", "ip_restricted"),
        ({"allowed_cidrs": ALLOWED, "blocked_cidrs": BLOCKED}, "10.2.0.1", ""),
        ({"blocked_cidrs": BLOCKED}, "", "ip_restricted"),
        ({"blocked_cidrs": BLOCKED}, "somewhere", "ip_restricted"),
        ({"blocked_cidrs": BLOCKED}, "10.2.0.1:80", "ip_restricted"),
    ],
)
async def test_networks(tmp_path: Path, lists: dict[str, Any], address: str, verdict: str) -> None:
    """Allowed ones let in, blocked ones beat them, and what is no address is nobody's."""
    async with asking(tmp_path, None, **lists) as ask:
        assert code(await ask(address)) == verdict
        assert code(await ask(address, tunnel_origin())) == verdict  # the overlay obeys them too


V4 = st.integers(0, 2**32 - 1).map(ip_address)
V4_NETWORK = st.tuples(V4, st.integers(0, 32)).map(lambda pair: ip_network((int(pair[0]), pair[1]), strict=False))


@given(st.lists(V4_NETWORK, max_size=5), V4)
def test_look_up_agrees_with_the_library(networks: list[Any], address: Any) -> None:
    """However the networks overlap."""
    assert (address in Networks(networks)) == any(address in one for one in networks)
    assert bool(Networks(networks)) == bool(networks)


# Countries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "address", "verdict"),
    [
        ({"allowed_countries": ["DE"]}, GERMANY, ""),
        ({"allowed_countries": ["de"]}, "2001:db8:1::1", ""),
        ({"allowed_countries": ["DE"]}, FRANCE, "country_restricted"),
        ({"allowed_countries": ["DE"]}, NOWHERE, "country_restricted"),
        ({"allowed_countries": ["DE"]}, "198.18.0.1", "country_restricted"),
        ({"blocked_countries": ["fr"]}, FRANCE, "country_restricted"),
        ({"blocked_countries": ["FR"]}, GERMANY, ""),
        ({"blocked_countries": ["FR"]}, NOWHERE, ""),
        ({"allowed_countries": ["DE", "FR"], "blocked_countries": ["FR"]}, FRANCE, "country_restricted"),
        ({"allowed_countries": ["DE"], "blocked_cidrs": ["192.0.2.0/24"]}, GERMANY, "ip_restricted"),
        ({"allowed_countries": ["DE"], "allowed_cidrs": ["192.0.2.0/24"]}, FRANCE, "ip_restricted"),
    ],
)
async def test_countries(tmp_path: Path, lists: dict[str, Any], address: str, verdict: str) -> None:
    """After the networks; an address in no known country is refused only where some are allowed."""
    async with asking(tmp_path, **lists) as ask:
        assert code(await ask(address)) == verdict


@pytest.mark.parametrize("lists", [{"allowed_countries": ["DE"]}, {"blocked_countries": ["FR"]}])
async def test_without_a_database_nobody_comes_in(tmp_path: Path, lists: dict[str, Any]) -> None:
    """Who cannot be placed is not let in, whichever list it is; networks alone need no database."""
    async with asking(tmp_path, None, **lists) as ask:
        assert code(await ask(GERMANY)) == "geo_unavailable"
    async with asking(tmp_path, None, allowed_cidrs=["0.0.0.0/0"]) as ask:
        assert code(await ask(GERMANY)) == ""


async def test_database_that_breaks_under_way_closes(tmp_path: Path) -> None:
    """Damage that only a look-up finds, and an address that the database has no place for."""
    at = WORLD.index(b"\x47country")
    broken = WORLD[:at] + b"\x5dcountry" + WORLD[at + 8 :]  # a text that ends behind the file
    async with asking(tmp_path, broken, blocked_countries=["FR"]) as ask:
        assert code(await ask(GERMANY)) == "geo_unavailable"
    async with asking(
        tmp_path, database({"192.0.2.0/24": country("DE")}, ip_version=4), blocked_countries=["FR"]
    ) as ask:
        assert code(await ask(GERMANY)) == ""
        assert code(await ask("2001:db8::1")) == "geo_unavailable"


async def until_logged(logs: Sequence[MutableMapping[str, Any]], event: str, times: int = 1) -> None:
    async with asyncio.timeout(20):
        while [one["event"] for one in logs].count(event) < times:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_another_database_counts_without_a_restart(tmp_path: Path) -> None:
    """Put in its place or written over it; what is damaged, cut off or gone leaves the last good one to tell."""
    file = tmp_path / "world.mmdb"
    moved = database({"192.0.2.0/24": country("FR"), "198.51.100.0/24": country("DE"), "16.0.0.0/4": country("DE")})
    damaged = moved.replace(b"\x47country", b"\x5dcountry")  # texts that end behind the file
    with capture_logs() as logs:
        async with asking(tmp_path, allowed_countries=["DE"]) as ask:
            assert (code(await ask(GERMANY)), code(await ask(FRANCE))) == ("", "country_restricted")

            for i, bad in enumerate((damaged, moved[:100], b""), 1):
                file.write_bytes(bad)  # over the one that is open
                await until_logged(logs, "access_restrictions.database_kept", i)
                assert (code(await ask(GERMANY)), code(await ask(FRANCE))) == ("", "country_restricted")
            file.unlink()
            await until_logged(logs, "access_restrictions.database_kept", 4)
            assert code(await ask(GERMANY)) == ""

            (tmp_path / "new").write_bytes(moved)
            (tmp_path / "new").rename(file)
            await until_logged(logs, "access_restrictions.database_replaced")
            assert (code(await ask(GERMANY)), code(await ask(FRANCE))) == ("country_restricted", "")
            file.write_bytes(WORLD)
            await until_logged(logs, "access_restrictions.database_replaced", 2)
            assert (code(await ask(GERMANY)), code(await ask(FRANCE))) == ("", "country_restricted")
    kept = [one["error"] for one in logs if one["event"] == "access_restrictions.database_kept"]
    assert "damaged" in kept[0]


async def test_a_directory_of_dated_databases(tmp_path: Path) -> None:
    """The last by name counts; a directory that is empty or absent keeps services with country rules closed."""
    directory = tmp_path / "geo"
    options = AccessRestrictionsOptions(geo_directory=directory, geo_interval=0.02)
    hooks, proxy = loaded(), FakeProxy(options=[options])
    with capture_logs() as logs:
        async with hooks.running(proxy):
            lists = RestrictionSettings.from_wire(wire(blocked_countries=["FR"]))
            ((_, guard),) = hooks.restrict(route(values={RestrictionSettings: lists}), proxy)

            async def ask(address: str) -> str:
                made = exchange(origin=host_origin("203.0.113.9"))
                made.client_address = address
                return code(await guard.check(made))

            assert await ask(FRANCE) == "geo_unavailable"
            directory.mkdir()
            (directory / "GeoLite2-City_20260101.mmdb").write_bytes(WORLD)
            await until_logged(logs, "access_restrictions.database_replaced")
            assert (await ask(GERMANY), await ask(FRANCE)) == ("", "country_restricted")
            (directory / "notes.txt").write_bytes(b"not a database")
            (directory / "GeoLite2-City_20260201.mmdb").write_bytes(b"not a database")
            await until_logged(logs, "access_restrictions.database_kept")
            assert (await ask(GERMANY), await ask(FRANCE)) == ("", "country_restricted")


def test_one_place_for_databases(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not both be set"):
        AccessRestrictionsOptions(geo_database=tmp_path / "a.mmdb", geo_directory=tmp_path)


async def test_overlay_is_in_no_country(tmp_path: Path) -> None:
    """Members come in whatever countries are named; networks hold for them as for anybody."""
    async with asking(tmp_path, None, allowed_countries=["DE"], blocked_cidrs=["100.64.0.13/32"]) as ask:
        assert code(await ask("100.64.0.9", tunnel_origin())) == ""
        assert code(await ask("100.64.0.13", tunnel_origin())) == "ip_restricted"


async def test_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    """A typo in the settings must not close services one by one."""
    for content in (None, b"", b"not a database"):
        file = tmp_path / "world.mmdb"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        proxy = FakeProxy(options=[AccessRestrictionsOptions(geo_database=file)])
        with pytest.raises(PluginFailed, match=PLUGIN):
            async with loaded().running(proxy):
                raise AssertionError("it started")


# At apply -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ({"allowed_cidrs": ["10.0.0.0/8", "10.0.0.1"]}, "allowed_cidrs: '10.0.0.1' is not a network"),
        ({"blocked_cidrs": ["10.0.0.0/33"]}, "blocked_cidrs: '10.0.0.0/33' is not a network"),
        ({"blocked_cidrs": ["10.0.0.0/255.0.0.0"]}, "blocked_cidrs: '10.0.0.0/255.0.0.0' is not a network"),
        ({"blocked_cidrs": ["10.0.0.0/ 8"]}, "blocked_cidrs: '10.0.0.0/ 8' is not a network"),
        ({"allowed_cidrs": [""]}, "allowed_cidrs: '' is not a network"),
        ({"allowed_countries": ["DEU"]}, "allowed_countries: 'DEU' must be a country code of two letters"),
        ({"blocked_countries": ["D1"]}, "blocked_countries: 'D1' must be a country code of two letters"),
        ({"blocked_countries": ["\u00e4\u00f6"]}, "blocked_countries: '\u00c4\u00d6' must be"),
        ({"crowdsec_mode": "enforce"}, "crowdsec_mode is enforce, which this proxy does not support"),
        ({"crowdsec_mode": "maybe"}, "crowdsec_mode 'maybe' must be"),
    ],
)
def test_promise_3_list_that_cannot_be_used_refuses_the_mapping(lists: dict[str, Any], sentence: str) -> None:
    """An entry that is left out would let in, or keep out, somebody else than the operator thinks."""
    mapping = Codec(loaded()).decode(wire(**lists), source="management").mapping

    assert sentence in mapping.refused
    assert mapping.routes == ()


@pytest.mark.parametrize(
    ("lists", "guarding"),
    [
        ({"allowed_cidrs": ["10.0.0.0/8"]}, {PLUGIN: ("access_restrictions.allowed_cidrs",)}),
        ({"blocked_countries": ["DE"]}, {PLUGIN: ("access_restrictions.blocked_countries",)}),
        ({"crowdsec_mode": "observe"}, {}),
        ({"crowdsec_mode": "off"}, {}),
        ({}, {}),
    ],
)
def test_lists_guard_and_observing_does_not(lists: dict[str, Any], guarding: dict[str, Any]) -> None:
    """What guards must be enforced by this plugin, or the mapping is not served at all."""
    mapping = Codec(loaded()).decode(wire(**lists), source="management").mapping

    assert mapping.refused == ""
    assert mapping.routes[0].guarding == guarding


@pytest.mark.parametrize("lists", [{}, {"crowdsec_mode": "observe"}, {"crowdsec_mode": "off"}])
def test_nothing_to_enforce_binds_nothing(lists: dict[str, Any]) -> None:
    """A service without lists pays nothing for them."""
    spec = route(values={RestrictionSettings: RestrictionSettings.from_wire(wire(**lists))})
    assert loaded().restrict(spec, FakeProxy()) == []


def test_where_nobody_vouches_for_addresses_the_route_is_refused() -> None:
    """Inside another server anybody's header may be the client's address."""
    spec = route(values={RestrictionSettings: RestrictionSettings.from_wire(wire(blocked_cidrs=["10.0.0.0/8"]))})
    with pytest.raises(RouteRefused, match="not trusted"):
        loaded().restrict(spec, FakeProxy(client_addresses_trusted=False))
