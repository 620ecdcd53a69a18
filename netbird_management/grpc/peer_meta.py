"""Reports of agents about their machines, cut to the part that management stores."""

from typing import Final

from netbird_management.model.accounts import PeerMeta
from netbird_wire.management_pb2 import Flags, PeerSystemMeta

_TEXT: Final = 255
_FLAGS: Final = {
    "blockInbound": "block_inbound",
    "blockLANAccess": "block_lan_access",
    "disableClientRoutes": "disable_client_routes",
    "disableDNS": "disable_dns",
    "disableFirewall": "disable_firewall",
    "disableServerRoutes": "disable_server_routes",
    "lazyConnectionEnabled": "lazy_connection_enabled",
    "rosenpassEnabled": "rosenpass_enabled",
    "rosenpassPermissive": "rosenpass_permissive",
    "serverSSHAllowed": "server_ssh_allowed",
}
"""Names in the API by their names on the wire."""

assert set(_FLAGS) <= set(Flags.DESCRIPTOR.fields_by_name)  # noqa: S101 - a wrong name would read as False


def peer_meta(given: PeerSystemMeta) -> PeerMeta:
    """The stored part of a report, without control characters.

    A hostname loses "@", as it must not look like a user's e-mail address where a peer is shown in place of a user.
    """
    return PeerMeta(
        hostname=_text(given.hostname.replace("@", "")),
        go_os=_text(given.goOS),
        kernel=_text(given.kernel),
        core=_text(given.core),
        platform=_text(given.platform),
        os=_text(given.OS),
        netbird_version=_text(given.netbirdVersion),
        ui_version=_text(given.uiVersion),
        kernel_version=_text(given.kernelVersion),
        os_version=_text(given.OSVersion),
        serial_number=_text(given.sysSerialNumber),
        capabilities=tuple(sorted(set(given.capabilities)))[:16],
        flags=tuple(shown for name, shown in _FLAGS.items() if getattr(given.flags, name)),
    )


def _text(value: str) -> str:
    return "".join(char for char in value if char.isprintable())[:_TEXT]
