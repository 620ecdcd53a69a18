"""Reads management's configuration of the servers that connect peers: signal, relays, STUN and TURN."""

from __future__ import annotations

from netbird_overlay.paths.servers import PathServers, TurnServer
from netbird_overlay.signal.client import SignalTarget
from netbird_wire.management_pb2 import HostConfig, NetbirdConfig
from netbird_wire.relay_tokens import BadToken, RelayToken

MAX_SERVERS = 32
"""Maximum number of servers of each kind that are used; further ones are left out."""


def read_login(config: NetbirdConfig, *, roots: bytes | None = None) -> PathServers:
    """Read the configuration of a login, which is complete: an absent relay or list means that there is none.

    Args:
        roots: PEM text of the authorities that sign the signal server's certificate; None for the system's.
    """
    servers = read_refresh(config)
    return PathServers(
        signal=_signal(config.signal, roots) if config.HasField("signal") else None,
        relays=servers.relays,
        relay_token=servers.relay_token,
        stuns=servers.stuns or (),
        turns=servers.turns or (),
    )


def read_refresh(config: NetbirdConfig) -> PathServers:
    """Read the configuration of a later message.

    Without `relay` no relay is used any more; empty lists of STUN and TURN servers mean that these have not changed;
    another signal server is not read, because peers look for us at the one of the login.
    """
    urls: tuple[str, ...] = ()
    token = None
    if config.HasField("relay"):
        urls = tuple(config.relay.urls)[:MAX_SERVERS]
        token = _token(config.relay.tokenPayload, config.relay.tokenSignature) if urls else None
    return PathServers(
        relays=urls,
        relay_token=token,
        stuns=tuple(stun.uri for stun in config.stuns if stun.uri)[:MAX_SERVERS] or None,
        turns=tuple(
            TurnServer(turn.hostConfig.uri, turn.user, turn.password) for turn in config.turns if turn.hostConfig.uri
        )[:MAX_SERVERS]
        or None,
    )


def _signal(config: HostConfig, roots: bytes | None) -> SignalTarget | None:
    return SignalTarget(config.uri, config.protocol == HostConfig.HTTPS, roots) if config.uri else None


def _token(payload: str, signature: str) -> RelayToken | None:
    """Return the token, or None if it cannot be one: the relay would refuse it."""
    try:
        token = RelayToken.from_config(payload, signature)
    except BadToken:
        return None
    return token if token.expires_at is not None else None
