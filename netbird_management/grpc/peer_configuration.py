"""The servers that management announces to peers, with credentials that expire."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from netbird_management.peer_servers import TurnServer
from netbird_management.plugins.steps import PeerServers
from netbird_wire.management_pb2 import (
    HostConfig,
    MetricsConfig,
    NetbirdConfig,
    ProtectedHostConfig,
    RelayConfig,
)
from netbird_wire.relay_tokens import relay_token, turn_credentials

# Part of the credentials' life after which a peer gets new ones. The jitter keeps peers that came together, as after a
# restart, from returning together.
REFRESH_AT: Final = 0.75
JITTER: Final = 0.1


@dataclass(frozen=True, slots=True)
class PeerConfiguration:
    """Makes `NetbirdConfig` messages.

    Attributes:
        servers: the announced servers. Without a signal server the message has an empty one, as agents read the field
            without a check.
        relay_secret: the secret of the relays.
        seconds: time for which credentials are valid.
        clock: UNIX time in seconds.
        uniform: a random number from 0 to 1, for the jitter.
    """

    servers: PeerServers = field(default_factory=PeerServers)
    turns: Sequence[TurnServer] = ()
    relay_secret: str = field(default="", repr=False)
    seconds: float = 43_200.0
    clock: Callable[[], float] = time.time
    uniform: Callable[[], float] = random.random

    def message(self) -> NetbirdConfig:
        """The whole configuration with new credentials. It always has all parts: agents take an absent `relay` as
        "use no relay"."""
        expires_at = round(self.clock() + self.seconds)
        config = NetbirdConfig(
            stuns=[HostConfig(uri=uri, protocol=HostConfig.UDP) for uri in self.servers.stuns],
            turns=[_turn(server, expires_at) for server in self.turns],
            signal=_signal(self.servers.signal),
            metrics=MetricsConfig(),
        )
        if self.servers.relays:
            token = relay_token(self.relay_secret, expires_at)
            config.relay.CopyFrom(
                RelayConfig(urls=self.servers.relays, tokenPayload=token.payload, tokenSignature=token.signature_text)
            )
        return config

    def refresh_seconds(self) -> float | None:
        """Time after which a peer needs new credentials; `None` if none of them expire."""
        if not self.servers.relays and not any(server.secret.get_secret_value() for server in self.turns):
            return None
        return self.seconds * REFRESH_AT * (1 - JITTER * self.uniform())


def _signal(url: str) -> HostConfig:
    parts = urlsplit(url)
    return HostConfig(uri=parts.netloc, protocol=HostConfig.HTTPS if parts.scheme == "https" else HostConfig.HTTP)


def _turn(server: TurnServer, expires_at: int) -> ProtectedHostConfig:
    scheme, tcp = server.url.partition(":")[0], server.url.endswith("transport=tcp")
    host = HostConfig(uri=server.url, protocol=HostConfig.TCP if scheme == "turns" or tcp else HostConfig.UDP)
    if secret := server.secret.get_secret_value():
        credentials = turn_credentials(secret, expires_at)
        return ProtectedHostConfig(hostConfig=host, user=credentials.user, password=credentials.password)
    return ProtectedHostConfig(hostConfig=host, user=server.user, password=server.password.get_secret_value())
