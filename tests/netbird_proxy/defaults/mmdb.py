"""Writes small databases in MaxMind's format, by its public description (version 2.0, records of 24 bits)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, ip_network
from typing import Any

_MARKER = b"\xab\xcd\xefMaxMind.com"
_MAP, _UINT16, _UINT32, _UINT64, _TEXT, _ARRAY = 7, 5, 6, 9, 2, 11


def _head(kind: int, size: int) -> bytes:
    assert size < 29, "this writer knows small values only"
    return bytes([kind << 5 | size]) if kind < 8 else bytes([size, kind - 7])


class _Short(int):
    """Sixteen bits, as the metadata wants its small numbers."""


class _Long(int):
    """Sixty-four bits."""


def _encoded(value: Any) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return _head(_TEXT, len(raw)) + raw
    if isinstance(value, int):
        raw = value.to_bytes(4, "big").lstrip(b"\0")
        kind = _UINT16 if isinstance(value, _Short) else _UINT64 if isinstance(value, _Long) else _UINT32
        return _head(kind, len(raw)) + raw
    if isinstance(value, list):
        return _head(_ARRAY, len(value)) + b"".join(map(_encoded, value))
    return _head(_MAP, len(value)) + b"".join(_encoded(key) + _encoded(one) for key, one in value.items())


def database(networks: Mapping[str, Any], *, ip_version: int = 6) -> bytes:
    """A database that says of each network what is given. IPv4 networks stand under ::/96 of an IPv6 tree."""
    nodes: list[list[Any]] = [[None, None]]
    for text, record in networks.items():
        network = ip_network(text)
        bits, length = int(network.network_address), network.prefixlen
        width = network.max_prefixlen
        if isinstance(network, IPv4Network) and ip_version == 6:
            length, width = length + 96, 128
        node = 0
        for depth in range(length - 1):
            side = bits >> (width - 1 - depth) & 1
            if not isinstance(nodes[node][side], int):
                nodes.append([None, None])
                nodes[node][side] = len(nodes) - 1
            node = nodes[node][side]
        nodes[node][bits >> (width - length) & 1] = (record,)
    data, tree = b"", b""
    for node_ in nodes:
        for child in node_:
            if isinstance(child, tuple):
                pointer = len(nodes) + 16 + len(data)
                data += _encoded(child[0])
            else:
                pointer = len(nodes) if child is None else child
            tree += pointer.to_bytes(3, "big")
    about = {
        "node_count": len(nodes),
        "record_size": _Short(24),
        "ip_version": _Short(ip_version),
        "database_type": "Test-Country",
        "languages": ["en"],
        "binary_format_major_version": _Short(2),
        "binary_format_minor_version": _Short(0),
        "build_epoch": _Long(1),
        "description": {"en": "test"},
    }
    return tree + bytes(16) + data + _MARKER + _encoded(about)


def country(code: str) -> dict[str, Any]:
    return {"country": {"iso_code": code}}
