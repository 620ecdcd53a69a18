"""What operators may set per service and per target beyond NetBird's own fields, and no plugin's: `core` on the wire.

Both hosts judge by these models: management when a service is saved, the proxy again when its mapping is applied.
"""

from __future__ import annotations

import re
import ssl
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_CA_BYTES = 65_536
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def _certificates(pem: str) -> str:
    """PEM text with at least one certificate that TLS can use, or nothing."""
    if not pem:
        return pem
    if "PRIVATE KEY" in pem:
        raise ValueError("it holds a private key, which nobody needs to know here")
    try:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        found.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("it is not a list of certificates in PEM") from error
    if not found.cert_store_stats()["x509"]:
        raise ValueError("it holds no certificate")
    return pem


def _server_name(name: str) -> str:
    if name and (len(name) > 253 or not _NAME.fullmatch(name)):
        raise ValueError("it is not a host's name")
    return name


ASK_FOR_BOTH = "plugin_settings.core.ask_for_both"
"""The one of them that guards, by the name under which proxies claim that they enforce it."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CoreSettings(_Settings):
    """Of a service.

    Attributes:
        ambiguous_path: `pass` for a service that needs paths that can be read in two ways, such as one with an encoded
            slash: the proxy refuses the service where its paths are guarded differently. With `reject` the proxy serves
            it, and answers such a path with 400 where they are.
        same_origin: whether unsafe requests from other sites are refused where the caller is known by a cookie or by
            the tunnel.
        ask_for_both: whether whom the account's tunnel names must log in as well. For public services with a scheme.
    """

    ambiguous_path: Literal["reject", "pass"] = "reject"
    same_origin: Annotated[bool, Field(strict=True)] = True
    ask_for_both: Annotated[bool, Field(strict=True)] = False


class CoreTargetSettings(_Settings):
    """Of a target.

    Attributes:
        ca: certificates in PEM that alone vouch for this upstream, in place of the system's roots.
        server_name: what TLS asks this upstream for and verifies, where it is not the host that is dialed.
    """

    ca: Annotated[str, Field(max_length=MAX_CA_BYTES), AfterValidator(_certificates)] = ""
    server_name: Annotated[str, AfterValidator(_server_name)] = ""
