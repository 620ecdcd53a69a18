"""Reads the WireGuard configuration files of stock clients.

The reader is strict: an unknown line is an error that names the line, because a peer that ignored it would differ from
the peer that the file describes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network

from netbird_wire.envelope import BadKey, parse_key

Network = IPv4Network | IPv6Network
INTERFACE_KEYS = frozenset(("privatekey", "address", "mtu", "listenport"))
PEER_KEYS = frozenset(("publickey", "presharedkey", "allowedips", "endpoint", "persistentkeepalive"))
IGNORED = frozenset(("dns",))
"""Keys of the whole machine that change nothing for a peer in userspace: its callers resolve names by themselves."""
ACTS_ON_THE_MACHINE = frozenset(("table", "preup", "postup", "predown", "postdown", "saveconfig", "fwmark"))
REPEATABLE = frozenset(("address", "allowedips"))


class ConfigError(ValueError):
    """The file cannot be used. The message names the file, the line and the fault, and never shows a private key."""


@dataclass(frozen=True, slots=True)
class PeerSection:
    """One `[Peer]`.

    Attributes:
        endpoint: host (a name or an address) and port; None if the peer must contact us first.
        keepalive: interval in seconds; None for none.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...]
    endpoint: tuple[str, int] | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    keepalive: int | None = None


@dataclass(frozen=True, slots=True)
class WireGuardConfig:
    private_key: bytes = field(repr=False)
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    peers: tuple[PeerSection, ...]
    mtu: int = 1280
    listen_port: int = 0


@dataclass(slots=True)
class _Section:
    name: str
    line: int
    values: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def parse_config(text: str, *, name: str = "configuration") -> WireGuardConfig:
    """Parse a file's text. Raises ConfigError, whose message names the file by `name`."""
    return _Reader(name).read(text)


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name

    def _wrong(self, line: int, why: str) -> ConfigError:
        return ConfigError(f"{self._name}:{line}: {why}")

    def read(self, text: str) -> WireGuardConfig:
        sections = self._sections(text)
        interfaces = [section for section in sections if section.name == "interface"]
        if len(interfaces) != 1:
            raise ConfigError(f"{self._name}: must have exactly one [Interface], not {len(interfaces)}")
        interface = interfaces[0]
        peers = tuple(self._peer(section) for section in sections if section.name == "peer")
        keys = [peer.public_key for peer in peers]
        if len(set(keys)) != len(keys):
            raise ConfigError(f"{self._name}: two [Peer] sections have the same PublicKey")
        mtu = self._number(interface, "mtu", 576, 8192)
        port = self._number(interface, "listenport", 0, 65535)
        return WireGuardConfig(
            private_key=self._key(interface, "privatekey"),
            addresses=tuple(self._addresses(interface)),
            peers=peers,
            mtu=1280 if mtu is None else mtu,
            listen_port=port or 0,
        )

    def _sections(self, text: str) -> list[_Section]:
        sections: list[_Section] = []
        for number, raw in enumerate(text.splitlines(), start=1):
            line = raw.partition("#")[0].strip()
            if not line:
                continue
            if line.startswith("["):
                name = line[1:-1].strip().lower() if line.endswith("]") else ""
                if name not in ("interface", "peer"):
                    raise self._wrong(number, f"{line!r} is neither [Interface] nor [Peer]")
                sections.append(_Section(name, number))
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals:
                raise self._wrong(number, "expected `Key = value`")
            if not sections:
                raise self._wrong(number, f"{key} stands before any section")
            self._add(sections[-1], number, key, value)
        return sections

    def _add(self, section: _Section, line: int, key: str, value: str) -> None:
        folded = key.lower()
        supported = INTERFACE_KEYS if section.name == "interface" else PEER_KEYS
        if section.name == "interface" and folded in ACTS_ON_THE_MACHINE:
            raise self._wrong(line, f"{key} changes the machine, which a peer in userspace does not: remove the line")
        if section.name == "interface" and folded in IGNORED:
            return
        if folded not in supported:
            raise self._wrong(line, f"unknown key {key} in [{section.name.capitalize()}]")
        if not value:
            raise self._wrong(line, f"{key} has no value")
        if folded in section.values and folded not in REPEATABLE:
            raise self._wrong(line, f"{key} is given twice")
        section.values.setdefault(folded, []).append((line, value))

    def _peer(self, section: _Section) -> PeerSection:
        keepalive = None
        if section.values.get("persistentkeepalive", [(0, "")])[0][1].lower() != "off":
            keepalive = self._number(section, "persistentkeepalive", 0, 65535) or None
        return PeerSection(
            public_key=self._key(section, "publickey"),
            allowed_ips=tuple(self._networks(section)),
            endpoint=self._endpoint(section),
            preshared_key=self._key(section, "presharedkey") if "presharedkey" in section.values else None,
            keepalive=keepalive,
        )

    def _key(self, section: _Section, key: str) -> bytes:
        names = {"privatekey": "PrivateKey", "publickey": "PublicKey", "presharedkey": "PresharedKey"}
        if key not in section.values:
            raise self._wrong(section.line, f"[{section.name.capitalize()}] has no {names[key]}")
        line, value = section.values[key][0]
        try:
            return parse_key(value)
        except BadKey as exc:
            raise self._wrong(line, f"{names[key]}: {exc}") from None

    def _addresses(self, section: _Section) -> list[IPv4Interface | IPv6Interface]:
        addresses = []
        for line, value in section.values.get("address", []):
            for part in value.split(","):
                try:
                    addresses.append(ip_interface(part.strip()))
                except ValueError:
                    raise self._wrong(line, f"{part.strip()!r} is not an address") from None
        if not addresses:
            raise self._wrong(section.line, "[Interface] has no Address")
        return addresses

    def _networks(self, section: _Section) -> list[Network]:
        networks = []
        for line, value in section.values.get("allowedips", []):
            for part in value.split(","):
                try:
                    networks.append(ip_network(part.strip(), strict=False))
                except ValueError:
                    raise self._wrong(line, f"{part.strip()!r} is not a network") from None
        return networks

    def _endpoint(self, section: _Section) -> tuple[str, int] | None:
        if "endpoint" not in section.values:
            return None
        line, value = section.values["endpoint"][0]
        host, colon, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not colon or not host or (":" in host and not bracketed) or not _is_number(port, 1, 65535):
            raise self._wrong(line, f"Endpoint {value!r} is not host:port (IPv6 addresses in brackets)")
        return host, int(port)

    def _number(self, section: _Section, key: str, low: int, high: int) -> int | None:
        if key not in section.values:
            return None
        line, value = section.values[key][0]
        if not _is_number(value, low, high):
            names = {"mtu": "MTU", "listenport": "ListenPort", "persistentkeepalive": "PersistentKeepalive"}
            raise self._wrong(line, f"{names[key]} {value!r} is not a number from {low} to {high}")
        return int(value)


def _is_number(text: str, low: int, high: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and low <= int(text) <= high
