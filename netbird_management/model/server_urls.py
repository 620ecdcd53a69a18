"""Addresses of the servers that peers use beside management, in the forms of NetBird's agents."""

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443, "rel": 80, "rels": 443}
_STUN_PORT: Final = 3478
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+):([0-9]{1,5})", re.ASCII)


def server_url(text: str, *schemes: str) -> str:
    """The URL with its port, `scheme://host:port`. Raises `ValueError` for anything but scheme, host and port."""
    parts = urlsplit(text)
    plain = text.rstrip("/") == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc
    if parts.scheme not in schemes or not parts.hostname or not plain:
        raise ValueError(f"must be {' or '.join(f'{scheme}://host:port' for scheme in schemes)}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port if parts.port is not None else _PORTS[parts.scheme]
    return f"{parts.scheme}://{host_and_port(f'{host}:{port}')}"


def host_and_port(text: str) -> str:
    """The text, if it is `host:port` with an IPv6 host in brackets. Raises `ValueError`."""
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or not text.isascii() or not text.isprintable() or not 0 < int(match[2]) < 65536:
        raise ValueError("must be host:port, with an IPv6 host in brackets and a port from 1 to 65535")
    return text


def stun_server(text: str) -> str:
    """`stun:host:port`; the scheme and the port may be absent. Raises `ValueError`."""
    bare = text.removeprefix("stun:")
    has_port = _HOST_AND_PORT.fullmatch(bare) is not None
    return f"stun:{host_and_port(bare if has_port else f'{bare}:{_STUN_PORT}')}"


def turn_server(text: str) -> str:
    """`turn:host:port` or `turns:host:port`, with an optional `?transport=udp` or `?transport=tcp`. Raises
    `ValueError`."""
    scheme, _, rest = text.partition(":")
    bare, mark, query = rest.partition("?")
    if scheme not in ("turn", "turns") or (mark and query not in ("transport=udp", "transport=tcp")):
        raise ValueError("must be turn:host:port or turns:host:port, with ?transport=tcp for TCP")
    host_and_port(bare)
    return text


def is_loopback(url: str) -> bool:
    """True if only programs on the same machine can reach the server."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
