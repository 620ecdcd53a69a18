"""What a service says about its identity headers; the only thing both halves share."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netbird_wire.plugin_settings import read_settings, write_settings
from netbird_wire.proxy_service_pb2 import ProxyMapping

PLUGIN = "identity_headers"
FIELD = f"plugin_settings.{PLUGIN}"
"""The claimed settings. They guard where too many groups are to be refused."""


NonAscii = Literal["omit", "percent", "utf8"]
"""How a name is sent that is not printable ASCII. `omit`: not at all. `percent`: in UTF-8, percent-encoded, and so are
`%` and `,`. `utf8`: in UTF-8, but for control characters and commas, which nothing can carry."""


class IdentityHeadersSettings(BaseModel):
    """How much of the caller's groups the upstream of one service is told.

    Attributes:
        groups: all of them, or none.
        groups_max_bytes: what the value of `X-NetBird-Groups` may have: servers refuse heads that are too large.
        groups_overflow: what happens above it, which must be said with it. `leave_out`: none are told, never half a
            list, and `X-NetBird-Groups-Omitted` says how many there are. `deny`: the request is refused.
        non_ascii: how names outside printable ASCII are sent, see `NonAscii`; without it the proxy's own setting holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    groups: Literal["all", "none"] = "all"
    groups_max_bytes: int | None = Field(None, ge=1, le=65_536)
    groups_overflow: Literal["leave_out", "deny"] | None = None
    non_ascii: NonAscii | None = None

    @model_validator(mode="after")
    def _declared(self) -> Self:
        if (self.groups_max_bytes is None) != (self.groups_overflow is None):
            raise ValueError("groups_max_bytes and groups_overflow go together: say what happens above the limit")
        return self

    @property
    def denies(self) -> bool:
        return self.groups == "all" and self.groups_overflow == "deny"

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        return cls.model_validate(read_settings(mapping, PLUGIN))

    def to_wire(self, mapping: ProxyMapping) -> None:
        write_settings(mapping, PLUGIN, self.model_dump(exclude_defaults=True))
