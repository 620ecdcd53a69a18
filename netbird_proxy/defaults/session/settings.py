"""Login settings of a mapping."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Self

from netbird_proxy import TOKEN_PATTERN, fold
from netbird_wire.proxy_service_pb2 import ProxyMapping

FIELDS = ("auth.password", "auth.pin", "auth.oidc", "auth.header_auths")
"""The claimed fields. All guard: a proxy that does not understand one must not serve the mapping."""
DEFAULT_AGE = 86_400
_TOKEN = re.compile(TOKEN_PATTERN)
_NOT_CREDENTIALS = frozenset(
    (b"connection", b"content-length", b"cookie", b"host", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """One service's schemes.

    Attributes:
        headers: the names that hold a credential, as management wrote them.
        key: the 32 bytes that its session tokens are verified with; empty where there is no scheme.
        max_age: seconds after which a session is over, whatever its token says.
        private: nobody logs in: the account's tunnel says who calls.
    """

    password: bool = False
    pin: bool = False
    oidc: bool = False
    headers: tuple[str, ...] = ()
    key: bytes = b""
    max_age: int = DEFAULT_AGE
    private: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        auth = mapping.auth
        headers = tuple(dict.fromkeys(auth_header.header for auth_header in auth.header_auths))
        for name in headers:
            folded = fold(name.encode("utf-8", "replace"))
            if not _TOKEN.fullmatch(name) or folded in _NOT_CREDENTIALS or folded.startswith(b"x-netbird-"):
                raise ValueError(f"the header {name!r} can hold no credential")
        any_scheme = auth.password or auth.pin or auth.oidc or bool(headers)
        return cls(
            password=auth.password,
            pin=auth.pin,
            oidc=auth.oidc,
            headers=headers,
            key=_key(auth.session_key) if any_scheme else b"",
            max_age=auth.max_session_age_seconds if auth.max_session_age_seconds > 0 else DEFAULT_AGE,
            private=mapping.private,
        )

    @property
    def methods(self) -> frozenset[str]:
        """The schemes that make sessions in cookies."""
        given = (("password", self.password), ("pin", self.pin), ("oidc", self.oidc))
        return frozenset(name for name, there in given if there)

    @property
    def credentials(self) -> tuple[bytes, ...]:
        """Names of the headers whose values other plugins and upstreams must not see."""
        return tuple(name.encode() for name in self.headers)

    @property
    def guards(self) -> bool:
        return bool(self.methods or self.headers)


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError("auth.session_key is not base64 of 32 bytes")
    return key
