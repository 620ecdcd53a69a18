"""The proxy's half: selects the upstream of each try on routes with several upstreams."""

from __future__ import annotations

import secrets
from importlib.metadata import version
from pathlib import Path

from netbird_load_balancing.balancer import Balancer
from netbird_load_balancing.cookie import NOTE, PREFIX, StickyCookie
from netbird_load_balancing.health import UpstreamStates
from netbird_load_balancing.settings import FIELD, TARGET_FIELD, LoadBalancingSettings, TargetWeight
from netbird_proxy import (
    OWN_PATHS,
    Claim,
    PluginInfo,
    Proxy,
    ResponseTransform,
    RouteRefused,
    RouteSpec,
    Selector,
    hookimpl,
)

_SHORTEST_KEY = 32
_LONGEST_KEY = 4096


class LoadBalancingOptions(LoadBalancingSettings):
    """`[load_balancing]` in the settings file: for all services, unless a service has a setting of the same name."""

    cookie_key_file: Path | None = None
    """File with at least 32 random bytes for the cookies of `sticky = "cookie"`. Give all proxies of a cluster the same
    content. Without it, cookies are good until the proxy restarts; several workers require it."""


class LoadBalancing:
    """Balances the load of a service among its upstreams as the operator and the service's settings describe."""

    def __init__(self) -> None:
        self._states = UpstreamStates()
        self._own_key = secrets.token_bytes(_SHORTEST_KEY)
        self._keys: dict[Path, bytes] = {}

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-load-balancing"),
            summary="balances load among upstreams: weights, policies, sticky clients, passive health",
            claims=(Claim(FIELD), Claim(TARGET_FIELD)),
            notes=(NOTE,),
            cookies=(f"{PREFIX}*",),
            options=LoadBalancingOptions,
            settings=(LoadBalancingSettings,),
            target_settings=(TargetWeight,),
        )

    @hookimpl
    def select(self, route: RouteSpec, proxy: Proxy) -> Selector:
        settings = _settings(route, proxy)
        cookie = self._cookie(route, proxy, settings)
        balancer = Balancer(route, settings, self._states, cookie=cookie, count=proxy.count)
        return Selector(balancer.pick, balancer.outcome)

    @hookimpl
    def transform_response(self, route: RouteSpec, proxy: Proxy) -> ResponseTransform | None:
        if len(route.upstreams) < 2 or route.prefix.startswith(OWN_PATHS.encode()):
            return None
        cookie = self._cookie(route, proxy, _settings(route, proxy))
        return None if cookie is None else ResponseTransform(cookie.apply, owns=(b"set-cookie",), depends_on=FIELD)

    def _cookie(self, route: RouteSpec, proxy: Proxy, settings: LoadBalancingSettings) -> StickyCookie | None:
        return StickyCookie(self._key(proxy), route) if settings.sticky == "cookie" else None

    def _key(self, proxy: Proxy) -> bytes:
        """Return the key of the cookies. Raises RouteRefused if it cannot be read, or if workers would differ in it."""
        file = proxy.options(LoadBalancingOptions).cookie_key_file
        if file is None:
            if proxy.share.of > 1:
                raise RouteRefused("sticky = cookie with several workers needs [load_balancing] cookie_key_file")
            return self._own_key
        if file not in self._keys:
            try:
                with file.open("rb") as opened:
                    key = opened.read(_LONGEST_KEY)
            except OSError as error:
                raise RouteRefused(f"[load_balancing] cookie_key_file cannot be read: {error.strerror}") from error
            if len(key) < _SHORTEST_KEY:
                raise RouteRefused(f"[load_balancing] cookie_key_file has fewer than {_SHORTEST_KEY} bytes")
            self._keys[file] = key
        return self._keys[file]


def _settings(route: RouteSpec, proxy: Proxy) -> LoadBalancingSettings:
    """Return the operator's settings, with those of the service in place of the ones that it sets."""
    options = proxy.options(LoadBalancingOptions)
    service: LoadBalancingSettings | None = route.values.get(LoadBalancingSettings)
    if service is None or not service.model_fields_set:
        return options
    return options.model_copy(update={name: getattr(service, name) for name in service.model_fields_set})
