"""Absent, empty and present parts of management's configuration mean different things."""

from __future__ import annotations

import base64

import pytest

from netbird_overlay.membership.configuration import (
    MAX_SERVERS,
    read_login,
    read_refresh,
)
from netbird_overlay.paths.servers import PathServers, TurnServer
from netbird_overlay.signal.client import SignalTarget
from netbird_wire.management_pb2 import HostConfig, NetbirdConfig, ProtectedHostConfig, RelayConfig
from netbird_wire.relay_tokens import RelayToken

MAC = bytes(range(32))
RELAY = RelayConfig(
    urls=["rel://r1:8080", "rels://r2"], tokenPayload="1900000000", tokenSignature=base64.b64encode(MAC).decode()
)
WHOLE = NetbirdConfig(
    signal=HostConfig(uri="signal.example:443", protocol=HostConfig.HTTPS),
    stuns=[HostConfig(uri="stun:s1:3478")],
    turns=[ProtectedHostConfig(hostConfig=HostConfig(uri="turn:t1:3478"), user="u", password="p")],
    relay=RELAY,
)


def test_a_login_is_complete() -> None:
    """Every part of a login counts, and an absent one means that there is none."""
    assert read_login(WHOLE) == PathServers(
        signal=SignalTarget("signal.example:443", True),
        relays=("rel://r1:8080", "rels://r2"),
        relay_token=RelayToken("1900000000", MAC),
        stuns=("stun:s1:3478",),
        turns=(TurnServer("turn:t1:3478", "u", "p"),),
    )
    assert read_login(NetbirdConfig()) == PathServers(signal=None, relays=(), stuns=(), turns=())


@pytest.mark.parametrize("protocol", [HostConfig.UDP, HostConfig.TCP, HostConfig.HTTP, HostConfig.DTLS])
def test_signal_is_encrypted_with_https_alone(protocol: HostConfig.Protocol.ValueType) -> None:
    """No other protocol than HTTPS means TLS."""
    config = NetbirdConfig(signal=HostConfig(uri="signal:80", protocol=protocol))
    assert read_login(config).signal == SignalTarget("signal:80", False)


def test_a_refresh_switches_relays_off_and_keeps_the_rest() -> None:
    """Without `relay` no relay is used any more; empty lists keep theirs; the signal server never changes."""
    assert read_refresh(NetbirdConfig()) == PathServers(relays=())
    assert read_refresh(WHOLE).signal is None
    assert read_refresh(NetbirdConfig(relay=RELAY)) == PathServers(
        relays=("rel://r1:8080", "rels://r2"), relay_token=RelayToken("1900000000", MAC)
    )


@pytest.mark.parametrize(("payload", "signature"), [("", "AAAA"), ("soon", "AAAA"), ("1900000000", "not base64!")])
def test_a_token_that_cannot_be_one_is_none(payload: str, signature: str) -> None:
    """A token that a relay would refuse is left out; the relays stay, with the token from before."""
    config = NetbirdConfig(relay=RelayConfig(urls=["rel://r1"], tokenPayload=payload, tokenSignature=signature))
    assert read_refresh(config) == PathServers(relays=("rel://r1",))


def test_servers_are_limited() -> None:
    """Servers beyond the limit are left out."""
    config = NetbirdConfig(
        relay=RelayConfig(urls=[f"rel://r{number}" for number in range(100)]),
        stuns=[HostConfig(uri=f"stun:s{number}") for number in range(100)],
    )
    servers = read_refresh(config)
    assert servers.relays is not None
    assert servers.stuns is not None
    assert len(servers.relays) == len(servers.stuns) == MAX_SERVERS


def test_secrets_are_not_printed() -> None:
    """The token's MAC and a TURN password are in no log line."""
    text = repr(read_login(WHOLE))
    assert "'p'" not in text
    assert repr(MAC) not in text
