"""Settings of load balancing, shared by both halves of the plugin."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netbird_wire.plugin_settings import read_settings, write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

PLUGIN = "load_balancing"
FIELD = f"plugin_settings.{PLUGIN}"
"""The claimed settings of a service. They guard nothing, because every upstream is behind the same guards."""
TARGET_FIELD = f"path.{FIELD}"
"""The claimed settings of a target."""

HOUR = 3600
"""Seconds."""

Count = Annotated[int, Field(strict=True, ge=1, le=1000)]
Seconds = Annotated[int, Field(strict=True, ge=1, le=HOUR)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ejection(_Settings):
    """Passive health: an upstream that cannot be reached is not picked for a while.

    Attributes:
        failures: number of failures to connect, one after another, after which an upstream is ejected.
        seconds: time for which it is ejected; doubled each time until it is reached again.
        max_seconds: longest such time.
    """

    failures: Count = 5
    seconds: Seconds = 10
    max_seconds: Seconds = 300

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max_seconds < self.seconds:
            raise ValueError("max_seconds must not be less than seconds")
        return self


class LoadBalancingSettings(_Settings):
    """Load balancing of one service. What is set here replaces the proxy's own setting of the same name.

    Attributes:
        policy: upstreams take turns by weight, or the one with the fewest open requests for its weight is picked, or
            chance decides by weight.
        sticky: a client keeps its upstream by a cookie (over TLS only), by its address, or not at all.
        ejection: passive health; without it, every upstream is always picked.
    """

    policy: Literal["round_robin", "least_pending", "random"] = "round_robin"
    sticky: Literal["none", "cookie", "source"] = "none"
    ejection: Ejection | None = Ejection()

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        return cls.model_validate(read_settings(mapping, PLUGIN))

    def to_wire(self, mapping: ProxyMapping) -> None:
        write_settings(mapping, PLUGIN, self.model_dump(exclude_unset=True, mode="json"))


class TargetWeight(_Settings):
    """Settings of one target.

    Attributes:
        weight: share of requests, relative to the other targets of the same path.
    """

    weight: Count = 1

    @classmethod
    def from_wire(cls, _mapping: ProxyMapping, path: PathMapping) -> Self:
        return cls.model_validate(read_settings(path, PLUGIN))
