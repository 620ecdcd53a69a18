"""A service's settings of its identity headers, shared by both halves of the plugin."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netbird_wire.plugin_settings import read_settings, write_settings
from netbird_wire.proxy_service_pb2 import ProxyMapping

PLUGIN = "identity_headers"
FIELD = f"plugin_settings.{PLUGIN}"
"""The claimed settings. On the proxy they guard only if they can deny a caller."""


NonAscii = Literal["omit", "percent", "utf8"]
"""Encoding of names outside printable ASCII. `omit` drops them. `percent` percent-encodes their UTF-8, and also `%`
and `,`. `utf8` sends UTF-8, but leaves out names with control characters or commas."""


class IdentityHeadersSettings(BaseModel):
    """The identity headers for the upstreams of one service.

    Attributes:
        groups: send all groups, or none.
        groups_max_bytes: maximum size of the value of `X-NetBird-Groups`, because servers refuse large heads.
        groups_overflow: action above the maximum; must be set together with it. `leave_out` sends no groups at all,
            and their number in `X-NetBird-Groups-Omitted`. `deny` refuses the request.
        non_ascii: encoding of names outside printable ASCII, see `NonAscii`; by default the proxy's own setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    groups: Literal["all", "none"] = "all"
    groups_max_bytes: int | None = Field(None, ge=1, le=65_536)
    groups_overflow: Literal["leave_out", "deny"] | None = None
    non_ascii: NonAscii | None = None

    @model_validator(mode="after")
    def _declared(self) -> Self:
        if (self.groups_max_bytes is None) != (self.groups_overflow is None):
            raise ValueError("groups_max_bytes and groups_overflow must be set together")
        return self

    @property
    def denies(self) -> bool:
        return self.groups == "all" and self.groups_overflow == "deny"

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        return cls.model_validate(read_settings(mapping, PLUGIN))

    def to_wire(self, mapping: ProxyMapping) -> None:
        write_settings(mapping, PLUGIN, self.model_dump(exclude_defaults=True))
