"""Plugins that only say what they understand, as loaded by the real loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from google.protobuf import json_format
from pydantic import BaseModel, ConfigDict

from netbird_host.info import Claim, PluginInfo, always
from netbird_proxy.api.hookspecs import hookimpl
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping


class Describing:
    """A plugin that has nothing but its description."""

    def __init__(self, info: PluginInfo) -> None:
        self._info = info

    @hookimpl
    def describe(self) -> PluginInfo:
        return self._info


def hooks(**plugins: PluginInfo) -> Hooks:
    return load_hooks([(name, Describing(info)) for name, info in plugins.items()], core_claims=CORE_CLAIMS)


def claiming(*fields: str) -> PluginInfo:
    """A plugin that guards with these fields whenever they are set."""
    return PluginInfo(claims=tuple(Claim(field, always) for field in fields))


@dataclass(frozen=True)
class Shop:
    """What a mapping says to the plugin `shop`."""

    price: int
    seen_token: str

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        said = json_format.MessageToDict(mapping.plugin_settings["shop"])
        if "closed" in said:
            raise ValueError("the shop is closed")
        if "broken" in said:
            raise RuntimeError("hunter2")
        return cls(price=int(said.get("price", 0)), seen_token=mapping.auth_token)


class Shelf(BaseModel):
    """What a target says to the plugin `shop`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int = 1

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self:
        return cls.model_validate(json_format.MessageToDict(path.plugin_settings["shop"]))


SHOP = PluginInfo(
    claims=(Claim("plugin_settings.shop"), Claim("path.plugin_settings.shop", always)),
    settings=(Shop,),
    target_settings=(Shelf,),
)

SESSION = claiming("auth.password", "auth.pin", "auth.oidc", "auth.header_auths")
PRIVATE = PluginInfo(claims=(Claim("private", always),), capabilities=("supports_private_service",))
RESTRICTIONS = PluginInfo(
    claims=(
        *(Claim(f"access_restrictions.{name}", always) for name in ("allowed_cidrs", "blocked_cidrs")),
        *(Claim(f"access_restrictions.{name}", always) for name in ("allowed_countries", "blocked_countries")),
        Claim("access_restrictions.crowdsec_mode", lambda mode: mode != "observe"),
    )
)
DIRECT = claiming("path.options.direct_upstream")


def whole_codec() -> Codec:
    """With a plugin for everything that NetBird's wire can say."""
    return Codec(hooks(session=SESSION, private=PRIVATE, restrictions=RESTRICTIONS, direct=DIRECT, shop=SHOP))


def bare_codec() -> Codec:
    """With no plugin at all."""
    return Codec(hooks())
