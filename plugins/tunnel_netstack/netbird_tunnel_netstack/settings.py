"""The operator's settings of tunnels, and the UDP socket of each account."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, SecretStr, field_validator

from netbird_overlay.driver import open_socket
from netbird_overlay.keys import StateUnusable, TunnelState
from netbird_overlay.membership.joined import BUFFER_BYTES, MEMORY_BYTES
from netbird_overlay.node import KEEPALIVE
from netbird_proxy import WHOLE, Share
from netbird_wire.envelope import BadKey, parse_key

DEFAULT_PORTS = "51820-51999"


class TunnelOptions(BaseModel):
    """`[tunnel]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str] = "tunnel"

    ports: tuple[int, ...] = Field(default=DEFAULT_PORTS, validate_default=True)
    """UDP ports, one for each account: `"51820-51999"`, a number, or a list of both; 0 lets the system choose.
    Workers begin at different parts of the range; each account needs a port in each worker."""
    endpoint_host: str = ""
    """Host name or address in the configurations of stock WireGuard clients; if empty, they cannot connect."""
    bind: str = ""
    """Local address of the UDP sockets; if empty, all addresses of both families."""
    preshared_key: SecretStr | None = None
    """WireGuard's preshared key that every peer of every account has too: 44 characters of base64. Peers without it
    cannot shake hands."""
    keepalive: int = Field(default=KEEPALIVE, ge=0, le=3600)
    """Seconds between packets to a peer that has shaken hands, so that NATs and firewalls keep its flow; 0 for none."""
    buffer: int = Field(default=BUFFER_BYTES, ge=16 << 10, le=16 << 20)
    """Bytes up to which the buffers of a connection grow in each direction. They limit the rate: at 100 ms of round
    trip 4 MiB give 42 MB/s."""
    memory: int = Field(default=MEMORY_BYTES, ge=1 << 20)
    """Maximum bytes of all connections' buffers in this machine's tunnels, shared fairly by account and by peer. Above
    its share, an account's or a peer's new connections are dropped and its buffers stay small. Divided by
    `process.workers`."""

    dns: bool = False
    """Answer DNS queries of peers that may use a service, on port 53 of our overlay address, for the account's names.
    Management then names us as DNS server in the files of stock WireGuard clients, which send all of their queries."""
    dns_servers: tuple[IPvAnyAddress, ...] = ()
    """With `dns`, name servers for all other names; if empty, such queries are refused."""
    ice: bool = True
    """Look for direct paths to NetBird's agents, by ICE on the tunnel's UDP port; if false, they are reached through
    relays only."""
    roots: Path | None = None
    """PEM file of the authorities that sign the certificates of signal and relay servers; if unset, the system's."""

    @field_validator("ports", mode="before")
    @classmethod
    def _expand(cls, value: object) -> tuple[int, ...]:
        entries = value if isinstance(value, list | tuple) else [value]
        ports: dict[int, None] = {}
        for entry in entries:
            for port in _range(entry):
                ports[port] = None
        if not ports:
            raise ValueError("must contain at least one port")
        return tuple(ports)

    @field_validator("endpoint_host")
    @classmethod
    def _only_host(cls, value: str) -> str:
        host = value.strip("[]")
        if any(character.isspace() or character in "/@" for character in host) or host.count(":") == 1:
            raise ValueError("must be a host name or address without a port: each account has its own port")
        return host

    @field_validator("preshared_key")
    @classmethod
    def _only_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value():
            return None
        if value is not None:
            try:
                parse_key(value.get_secret_value())
            except BadKey as exc:
                raise ValueError(f"must be a WireGuard key: {exc}") from None
        return value

    def preshared_key_bytes(self) -> bytes | None:
        """Return the preshared key's 32 bytes, or None."""
        return parse_key(self.preshared_key.get_secret_value()) if self.preshared_key is not None else None

    @field_validator("roots", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return None if value == "" else value

    def read_roots(self) -> bytes | None:
        """Return the text of `roots`, or None. Raises StateUnusable if the file cannot be used."""
        if self.roots is None:
            return None
        try:
            text = self.roots.read_bytes()
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
        except (OSError, ValueError, ssl.SSLError) as exc:
            raise StateUnusable(f"tunnel.roots: {self.roots} has no usable certificates: {exc}") from exc
        return text

    def endpoint(self, port: int) -> str:
        """Return the endpoint for stock clients' files; empty without an `endpoint_host`."""
        if not self.endpoint_host:
            return ""
        return f"[{self.endpoint_host}]:{port}" if ":" in self.endpoint_host else f"{self.endpoint_host}:{port}"


def _range(entry: object) -> range:
    if isinstance(entry, int) and not isinstance(entry, bool):
        first = last = entry
    elif isinstance(entry, str):
        low, dash, high = entry.partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise ValueError(f"{entry!r} is neither a port nor a range such as {DEFAULT_PORTS!r}") from None
    else:
        raise ValueError(f"{entry!r} is neither a port nor a range such as {DEFAULT_PORTS!r}")
    if not 0 <= first <= last <= 65535 or (first == 0 and last != 0):
        raise ValueError(f"{entry!r}: ports must be 1..65535 in ascending order, or 0")
    return range(first, last + 1)


def bind_account(options: TunnelOptions, state: TunnelState, share: Share = WHOLE) -> socket.socket:
    """Open the account's UDP socket on its stored port; on the first start, on the first free port of this worker's
    part of the range, or else of the others' parts.

    A new port is stored before it is used. Raises StateUnusable if the stored port is in use: another port would
    silently cut off every client whose file contains the stored one.
    """
    if state.udp_port is not None and (0 in options.ports or state.udp_port in options.ports):
        try:
            return open_socket(options.bind, state.udp_port)
        except OSError as exc:
            raise StateUnusable(
                f"UDP port {state.udp_port}, which this account's peers know, cannot be bound: {exc.strerror}"
            ) from exc
    for port in share.order(options.ports):
        try:
            sock = open_socket(options.bind, port)
        except OSError as exc:
            if exc.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise StateUnusable(f"UDP port {port} of {options.bind or 'all addresses'}: {exc.strerror}") from exc
        try:
            state.udp_port = int(sock.getsockname()[1])
            state.save()
        except BaseException:
            sock.close()
            raise
        return sock
    each = f"; each of the {share.of} workers needs one for each account" if share.of > 1 else ""
    raise StateUnusable(f"no UDP port is free among {len(options.ports)} in tunnel.ports{each}")
