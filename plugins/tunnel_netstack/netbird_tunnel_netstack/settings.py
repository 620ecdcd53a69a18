"""The operator's settings of tunnels, and the UDP socket of each account."""

from __future__ import annotations

import errno
import socket
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from netbird_overlay.driver import open_socket
from netbird_overlay.keys import StateUnusable, TunnelState

DEFAULT_PORTS = "51820-51999"


class TunnelOptions(BaseModel):
    """`[tunnel]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str] = "tunnel"

    ports: tuple[int, ...] = Field(default=DEFAULT_PORTS, validate_default=True)
    """UDP ports, one for each account: `"51820-51999"`, a number, or a list of both; 0 lets the system choose."""
    endpoint_host: str = ""
    """Host name or address in the configurations of stock WireGuard clients; if empty, they cannot connect."""
    bind: str = ""
    """Local address of the UDP sockets; if empty, all addresses of both families."""

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


def bind_account(options: TunnelOptions, state: TunnelState) -> socket.socket:
    """Open the account's UDP socket on its stored port; on the first start, on the first free port.

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
    for port in options.ports:
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
    raise StateUnusable(f"no UDP port is free among {len(options.ports)} in tunnel.ports")
