"""The hooks of the access restrictions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator

from netbird_proxy import (
    ALLOW,
    Claim,
    Decision,
    Deny,
    ExchangeView,
    Guard,
    PluginInfo,
    Proxy,
    RouteRefused,
    RouteSpec,
    always,
    hookimpl,
    unmapped,
)
from netbird_proxy.defaults.access_restrictions.geo import GeoUnavailable, WatchedCountries
from netbird_proxy.defaults.access_restrictions.networks import Address, Networks
from netbird_proxy.defaults.access_restrictions.settings import RestrictionSettings

log = structlog.get_logger("netbird_proxy.access_restrictions")

_NOTHING = RestrictionSettings()
_LISTS = ("allowed_cidrs", "blocked_cidrs", "allowed_countries", "blocked_countries")


class AccessRestrictionsOptions(BaseModel):
    """`[access_restrictions]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    geo_database: Path | None = None
    """A country database in MaxMind's format (`.mmdb`). Without it, services with country rules are closed."""
    geo_directory: Path | None = None
    """A directory of such databases, instead of `geo_database`: the last by name is used. It may be empty or absent;
    services with country rules are then closed until a database is there."""
    geo_interval: float = Field(30.0, ge=0.01, le=86_400)
    """Interval, in seconds, at which the database file is checked; a file that changed, and is the same at the next
    check, is loaded."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.geo_database is not None and self.geo_directory is not None:
            raise ValueError("geo_database and geo_directory must not both be set")
        return self


class AccessRestrictions:
    """Restricts services to networks and countries."""

    def __init__(self) -> None:
        self._countries: WatchedCountries | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            summary="who may come in by address: networks and countries",
            claims=(
                *(Claim(f"access_restrictions.{name}", guards=always) for name in _LISTS),
                Claim("access_restrictions.crowdsec_mode", guards=_enforced),
            ),
            options=AccessRestrictionsOptions,
            settings=(RestrictionSettings,),
        )

    @hookimpl
    def lifespan(self, proxy: Proxy) -> AbstractAsyncContextManager[None]:
        return self._running(proxy.options(AccessRestrictionsOptions))

    @asynccontextmanager
    async def _running(self, options: AccessRestrictionsOptions) -> AsyncIterator[None]:
        place = options.geo_database or options.geo_directory
        if place is None:
            yield
            return
        dated = options.geo_directory is not None
        with WatchedCountries(place, interval=options.geo_interval, directory=dated) as self._countries:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._countries.watch())
                try:
                    yield
                finally:
                    watching.cancel()
                    self._countries = None

    @hookimpl
    def restrict(self, route: RouteSpec, proxy: Proxy) -> Guard | None:
        # A route that was made by a program may have no settings of this plugin.
        settings: RestrictionSettings = route.values.get(RestrictionSettings, _NOTHING)
        if settings.observes:
            log.warning(
                "access_restrictions.not_observed", service=route.service, reason="crowdsec_mode is not supported"
            )
        if not settings:
            return None
        if not proxy.client_addresses_trusted:
            raise RouteRefused("access depends on the client address, which is not trusted on this listener")
        if settings.by_country and self._countries is None:
            log.warning(
                "access_restrictions.no_database", service=route.service, reason="set access_restrictions.geo_database"
            )
        return Guard(_Restriction(self, settings).check, depends_on=settings)

    def country(self, address: Address) -> str:
        """See `Countries.country`. Raises GeoUnavailable without a database."""
        if self._countries is None:
            raise GeoUnavailable("no database of countries is configured")
        return self._countries.country(address)


def _enforced(mode: object) -> bool:
    return mode != "observe"


class _Restriction:
    """The compiled lists of one service. The first list that denies decides."""

    def __init__(self, plugin: AccessRestrictions, settings: RestrictionSettings) -> None:
        self._plugin = plugin
        self._settings = settings
        self._allowed = Networks(settings.allowed)
        self._blocked = Networks(settings.blocked)

    async def check(self, exchange: ExchangeView) -> Decision:
        try:
            address = _parsed(exchange.client_address)
        except ValueError:
            return Deny(403, "ip_restricted", f"{exchange.client_address!r} is no address")
        if self._allowed and address not in self._allowed:
            return Deny(403, "ip_restricted", f"{address} is in none of the allowed networks")
        if address in self._blocked:
            return Deny(403, "ip_restricted", f"{address} is in a blocked network")
        if self._settings.by_country and not (exchange.origin is not None and exchange.origin.is_tunnel):
            return self._by_country(address)
        return ALLOW  # an overlay address is in no country

    def _by_country(self, address: Address) -> Decision:
        settings = self._settings
        try:
            country = self._plugin.country(address)
        except GeoUnavailable as error:
            return Deny(403, "geo_unavailable", str(error))
        where = f"{address} is in {country or 'no known country'}"
        if settings.allowed_countries and country not in settings.allowed_countries:
            return Deny(403, "country_restricted", f"{where}, which is not allowed")
        if country in settings.blocked_countries:
            return Deny(403, "country_restricted", f"{where}, which is blocked")
        return ALLOW


def _parsed(text: str) -> Address:
    return unmapped(ip_address(text))
