"""The core's own settings of a service and of a target, beyond NetBird's fields: `core` on the wire.

Both hosts validate with these models: management when a service is saved, the proxy when its mapping is applied.
"""

from __future__ import annotations

import re
import ssl
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_CA_BYTES = 65_536
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_ORIGIN = re.compile(rf"https?://(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def _certificates(pem: str) -> str:
    """Accept an empty text, or PEM text with at least one certificate that TLS can use."""
    if not pem:
        return pem
    if "PRIVATE KEY" in pem:
        raise ValueError("it holds a private key; list certificates only")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("it is not a list of certificates in PEM") from error
    if not context.cert_store_stats()["x509"]:
        raise ValueError("it holds no certificate")
    return pem


def _server_name(name: str) -> str:
    if name and (len(name) > 253 or not _NAME.fullmatch(name)):
        raise ValueError("it is not a host name")
    return name


def _origin(text: str) -> str:
    if len(text) > 300 or not _ORIGIN.fullmatch(text):
        raise ValueError("it is not an origin such as https://app.example.com")
    return text


ASK_FOR_BOTH = "plugin_settings.core.ask_for_both"
"""Claim name of the only core setting that guards."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CoreSettings(_Settings):
    """Core settings of a service.

    Attributes:
        ambiguous_path: `pass` accepts paths that can be read in two ways, such as a path with an encoded slash;
            the proxy then refuses the service if its paths have different guards. With `reject` the proxy serves such a
            service and answers an ambiguous path with 400.
        same_origin: refuse unsafe requests from other sites if the caller is identified by a cookie or by the tunnel.
        preflight_origins: origins whose preflights (CORS) the proxy answers where a login guards the service, as a
            browser sends no credential with them.
        ask_for_both: require a login even if the tunnel already identifies the caller. For public services with a login
            scheme.
    """

    ambiguous_path: Literal["reject", "pass"] = "reject"
    same_origin: Annotated[bool, Field(strict=True)] = True
    ask_for_both: Annotated[bool, Field(strict=True)] = False
    preflight_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Field(max_length=32)] = ()


class CoreTargetSettings(_Settings):
    """Core settings of a target.

    Attributes:
        ca: certificates in PEM that replace the system's roots when this upstream is verified.
        server_name: name that TLS sends to and verifies of this upstream, if it differs from the dialed host.
    """

    ca: Annotated[str, Field(max_length=MAX_CA_BYTES), AfterValidator(_certificates)] = ""
    server_name: Annotated[str, AfterValidator(_server_name)] = ""
