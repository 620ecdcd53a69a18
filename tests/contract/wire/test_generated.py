"""The generated code is what the .proto files say, and ours and theirs keep to their own numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .golden import all_types

PROTO = Path(__file__).parents[3] / "proto"


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    """Generating anew gives exactly the files that are committed."""
    subprocess.run(
        [PROTO / "generate.sh", tmp_path],
        check=True,
        timeout=50,
        env={**os.environ, "PYTHON": sys.executable},
    )
    made = {path.name: path.read_text() for path in (tmp_path / "netbird_wire").iterdir()}
    kept = {path.name: path.read_text() for path in (PROTO / "netbird_wire").glob("*_pb2*.py*")}
    assert sorted(made) == sorted(kept)
    assert [name for name in made if made[name] != kept[name]] == []


def extensions() -> dict[str, int]:
    return {field.full_name: field.number for kind in all_types() for field in kind.fields if field.number >= 1000}


def test_every_extension_is_listed() -> None:
    """The README's table of numbers from 1000 up is complete, and names nothing that is not there."""
    table = re.findall(r"^\| `(\w+)\.(\w+)` \| (\d+) \|", (PROTO / "README.md").read_text(), flags=re.MULTILINE)
    assert {f"management.{message}.{field}": int(number) for message, field, number in table} == extensions()


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("ProxyCapabilities.claims", 1000),
        ("ProxyMapping.plugin_settings", 1000),
        ("PathMapping.plugin_settings", 1000),
        ("GetMappingUpdateResponse.management_extensions", 1000),
        ("SyncMappingsResponse.management_extensions", 1000),
        ("CreateProxyPeerRequest.wireguard_endpoint", 1000),
        ("AuthenticateRequest.client_address", 1000),
        ("ValidateTunnelPeerRequest.peer_key", 1000),
        ("ValidateTunnelPeerResponse.required_group_ids", 1000),
        ("ValidateTunnelPeerResponse.required_group_names", 1001),
        ("ValidateTunnelPeerResponse.principal", 1002),
        ("ValidateSessionResponse.principal", 1002),
    ],
)
def test_an_extension_keeps_its_number(field: str, number: int) -> None:
    """Proxies and managements of different versions meet: a number once given never moves."""
    assert extensions()[f"management.{field}"] == number
