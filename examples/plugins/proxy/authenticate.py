"""Authenticates programs by a key in a header, on every route."""

from __future__ import annotations

import hmac

from pydantic import BaseModel, ConfigDict, SecretStr

from netbird_proxy import Authenticator, Deny, ExchangeView, Identity, PluginInfo, Proxy, RouteSpec, UserId, hookimpl

HEADER = b"x-robot-key"


class RobotsOptions(BaseModel):
    """`[robots]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: dict[str, SecretStr] = {}
    """Each robot's key, by its name."""


class Robots:
    """A right key identifies a robot, a wrong key is denied; without a key, other authenticators decide."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="programs with a key in a header", options=RobotsOptions)

    @hookimpl
    def authenticate(self, route: RouteSpec, proxy: Proxy) -> Authenticator:
        keys = {name: key.get_secret_value().encode() for name, key in proxy.options(RobotsOptions).keys.items()}

        async def identify(exchange: ExchangeView) -> Identity | Deny | None:
            given = exchange.headers.get(HEADER)
            if given is None:
                return None
            for name, key in keys.items():
                if hmac.compare_digest(given, key):
                    return Identity(UserId(f"robot-{name}"), method="robot_key")
            return Deny(401, "bad_robot_key", "the key is nobody's")

        return Authenticator("credential", identify)
