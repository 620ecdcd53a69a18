"""Names of header fields that a single plugin owns on a route, in requests and in responses."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_host.http_fields import TOKEN
from netbird_proxy.api.errors import RouteRefused
from netbird_proxy.api.headers import RESERVED_PREFIX, fold
from netbird_proxy.pipeline.bound import BoundResponseTransform, BoundTransform
from netbird_proxy.pipeline.head_rules import CORE_NAMES, FORWARDING, is_forwarding

# Headers that no plugin can own → the reason.
_WHY_NOT = {
    b"via": "the core finds loops by it",
    b"cookie": "the core takes its own cookies out of it; a transform may set it without owning it",
    b"authorization": "logins read it; a transform may set it without owning it",
}


def request_owners(transforms: Sequence[BoundTransform]) -> dict[bytes, str]:
    """Folded header name → plugin.

    Raises:
        RouteRefused: two plugins own a name, or a plugin claims a name of the core.
    """
    owners: dict[bytes, str] = {}
    for transform in transforms:
        for name in transform.owns:
            folded = fold(name)
            why = _WHY_NOT.get(folded, "it frames the message" if folded in CORE_NAMES else "")
            if is_forwarding(folded) and transform.plugin != FORWARDING:
                why = f"it names the client, which the core and the plugin {FORWARDING} do"
            if why:
                raise RouteRefused(f"{transform.plugin} may not own the header {folded.decode('latin-1')}: {why}")
            if owners.setdefault(folded, transform.plugin) != transform.plugin:
                raise RouteRefused(
                    f"both {owners[folded]} and {transform.plugin} own the header {folded.decode('latin-1')}"
                )
    return owners


_WHY_NOT_IN_RESPONSES = {
    b"content-encoding": "it describes the body, which no transform changes",
    b"content-range": "it describes the body, which no transform changes",
    b"date": "caches compute the age of an answer from it",
}
_HANDSHAKE = b"sec-websocket-"


def check_response_owners(transforms: Sequence[BoundResponseTransform]) -> None:
    """Check the names that response transforms own on one route.

    Raises:
        RouteRefused: two plugins own a name, or a plugin claims a name of the core, or what is no name.
    """
    owners: dict[bytes, str] = {}
    for transform in transforms:
        for name in transform.owns:
            folded = fold(name)
            why = _WHY_NOT_IN_RESPONSES.get(folded, "it frames the message" if folded in CORE_NAMES else "")
            if not TOKEN.fullmatch(name):
                why = "it is not the name of a field"
            elif folded.startswith(RESERVED_PREFIX):
                why = "it is reserved for the core"
            elif folded.startswith(_HANDSHAKE):
                why = "it is a part of the upstream's handshake"
            if why:
                raise RouteRefused(
                    f"{transform.plugin} may not own the response header {folded.decode('latin-1')}: {why}"
                )
            if owners.setdefault(folded, transform.plugin) != transform.plugin:
                raise RouteRefused(
                    f"both {owners[folded]} and {transform.plugin} own the response header {folded.decode('latin-1')}"
                )
