"""The description of our system that management gets."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from netbird_wire.management_pb2 import (
    File,
    Flags,
    PeerCapabilityIPv6Overlay,
    PeerCapabilitySourcePrefixes,
    PeerSystemMeta,
)

AGENT_VERSION = "0.77.1"
"""The version that we report to management and to peers. It is pinned and has the form of a release: a version that
management cannot compare, or one below 0.59.0, makes it fall back to old behavior for the whole account."""


def system_meta(hostname: str, *, inbound: bool = True, files: Iterable[str] = ()) -> PeerSystemMeta:
    """Describe our system. Constant for the same arguments: management may ban peers whose description changes.

    The map version is left at 0, which requests the complete map instead of its components.

    Args:
        inbound: False reports that we admit no connections.
        files: paths that management's posture checks ask for. All are reported as absent: management gets no view of
            this machine's files and processes.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    version = release.get("VERSION_ID", "")
    return PeerSystemMeta(
        hostname=hostname,
        goOS=platform.system().lower(),
        kernel=platform.system(),
        core=version,
        platform=platform.machine(),
        OS=release.get("NAME", platform.system()),
        netbirdVersion=AGENT_VERSION,
        kernelVersion=platform.release(),
        OSVersion=version,
        files=[File(path=path) for path in files],
        flags=Flags(disableServerRoutes=True, blockLANAccess=True, blockInbound=not inbound),
        capabilities=[PeerCapabilitySourcePrefixes, PeerCapabilityIPv6Overlay],
    )
