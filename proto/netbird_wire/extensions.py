"""Extensions that our management lists in `management_extensions`, so that a proxy knows what it may send and expect.

NetBird's management lists none, so a proxy sends it no extended field.
"""

from __future__ import annotations

import enum


class Extension(enum.StrEnum):
    """An extension of NetBird's protocol; the value is its name on the wire."""

    ACCESS_LOG_BATCH = "access_log_batch"
    """Reads SendAccessLogRequest.logs, and user_groups in them."""
    CLAIMS = "claims"
    """Reads ProxyCapabilities.claims, and withholds mappings that are guarded by anything else."""
    CLIENT_ADDRESS = "client_address"
    """Reads AuthenticateRequest.client_address."""
    PEER_KEY = "peer_key"
    """Reads ValidateTunnelPeerRequest.peer_key."""
    PLUGIN_SETTINGS = "plugin_settings"
    """Sends ProxyMapping.plugin_settings and PathMapping.plugin_settings."""
    PRINCIPAL = "principal"
    """Sends user and peer separately in validations."""
    PROXY_ID = "proxy_id"
    """Reads the metadata `x-netbird-proxy-id` of unary calls."""
    REQUIRED_GROUPS = "required_groups"
    """Lists the required groups in a denial."""
    REVALIDATIONS = "revalidations"
    """Sends an event when access may have changed, so that proxies need not poll."""
    REVOCATIONS = "revocations"
    """Sends revocations as they happen, and the last day's in every snapshot."""
    WIREGUARD_ENDPOINT = "wireguard_endpoint"
    """Reads CreateProxyPeerRequest.wireguard_endpoint."""


NO_STREAM = "this proxy has no mapping stream"
"""Start of the UNAVAILABLE message for a proxy whose stream is being replaced: the proxy may retry at once."""
PROXY_ID_METADATA = "x-netbird-proxy-id"
"""gRPC metadata of every unary call of our proxy: its id, which must be a live session of the same token."""
