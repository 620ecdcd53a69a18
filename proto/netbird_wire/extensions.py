"""What our management names in `management_extensions`, so that a proxy knows what it may send and expect.

NetBird's management names none, and gets nothing that is extended.
"""

from __future__ import annotations

import enum


class Extension(enum.StrEnum):
    """One thing beyond NetBird's protocol; the value is its name on the wire."""

    ACCESS_LOG_BATCH = "access_log_batch"
    """Reads SendAccessLogRequest.logs, and user_groups in them."""
    CLAIMS = "claims"
    """Reads ProxyCapabilities.claims, and withholds mappings that are guarded by anything else."""
    CLIENT_ADDRESS = "client_address"
    """Reads AuthenticateRequest.client_address."""
    PLUGIN_SETTINGS = "plugin_settings"
    """Sends ProxyMapping.plugin_settings and PathMapping.plugin_settings."""
    PRINCIPAL = "principal"
    """Tells user and peer apart in validations."""
    PROXY_ID = "proxy_id"
    """Reads the metadata `x-netbird-proxy-id` of unary calls."""
    REQUIRED_GROUPS = "required_groups"
    """Names the wanted groups in a denial."""
    REVALIDATIONS = "revalidations"
    """Says at once whose access may have changed, so that proxies need not ask by the clock."""
    REVOCATIONS = "revocations"
    """Sends revocations as they happen, and the last day's in every snapshot."""
    WIREGUARD_ENDPOINT = "wireguard_endpoint"
    """Reads CreateProxyPeerRequest.wireguard_endpoint."""


NO_STREAM = "this proxy has no mapping stream"
"""How an UNAVAILABLE begins that a proxy gets whose stream is just being made anew: it may ask again at once."""
PROXY_ID_METADATA = "x-netbird-proxy-id"
"""gRPC metadata of every unary call of a proxy of ours: its id, which must be a live session of the same token."""
