"""Relays: datagrams to peers that no other path reaches."""

from netbird_overlay.relay.relays import Relays
from netbird_wire.relay import peer_id
from netbird_wire.relay_tokens import RelayToken, relay_token

__all__ = ["RelayToken", "Relays", "peer_id", "relay_token"]
