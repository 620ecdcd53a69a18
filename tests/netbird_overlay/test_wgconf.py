"""WireGuard files are read completely, or refused with the line that is wrong."""

from __future__ import annotations

import base64
from ipaddress import ip_interface, ip_network

import pytest

from netbird_overlay.wgconf import ConfigError, parse_config

PRIVATE = base64.b64encode(b"\x01" * 32).decode()
PUBLIC = base64.b64encode(b"\x02" * 32).decode()
OTHER = base64.b64encode(b"\x03" * 32).decode()

GOOD = f"""
# alice
[Interface]
PrivateKey = {PRIVATE}
Address = 100.64.0.5/32, fd00::5/128
MTU = 1280

[Peer]  # the proxy
publickey={PUBLIC}
PresharedKey = {OTHER}
AllowedIPs = 100.64.0.1/32
AllowedIPs = fd00::1
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
"""


def test_reads_what_stock_clients_write() -> None:
    """Keys fold, lists may be repeated or joined, comments go, a bare address is one address."""
    config = parse_config(GOOD)
    assert config.private_key == b"\x01" * 32
    assert config.addresses == (ip_interface("100.64.0.5/32"), ip_interface("fd00::5/128"))
    (peer,) = config.peers
    assert peer.allowed_ips == (ip_network("100.64.0.1/32"), ip_network("fd00::1/128"))
    assert peer.endpoint == ("2001:db8::1", 51820)
    assert peer.preshared_key == b"\x03" * 32
    assert peer.keepalive == 25
    assert config.listen_port == 0


def test_name_servers_are_for_the_whole_machine() -> None:
    """Management's files may have them; a peer in userspace changes nothing by them."""
    assert parse_config(GOOD.replace("MTU = 1280", "MTU = 1280\nDNS = 100.64.0.1, 9.9.9.9")) == parse_config(GOOD)


def test_secrets_do_not_show() -> None:
    """`repr` shows neither key."""
    shown = repr(parse_config(GOOD))
    assert PRIVATE not in shown
    assert repr(b"\x01" * 32) not in shown
    assert repr(b"\x03" * 32) not in shown


@pytest.mark.parametrize(
    ("before", "after", "line", "says"),
    [
        ("MTU = 1280", "MTU = 12800", 6, "MTU"),
        ("MTU = 1280", "MTU = ١٢٨٠", 6, "MTU"),
        ("MTU = 1280", "MTU 1280", 6, "Key = value"),
        ("MTU = 1280", "MTU =", 6, "no value"),
        ("MTU = 1280", "Table = off", 6, "changes the machine"),
        ("MTU = 1280", "PostUp = rm -rf /", 6, "changes the machine"),
        ("MTU = 1280", "Jc = 4", 6, "unknown key Jc in [Interface]"),
        ("MTU = 1280", f"PrivateKey = {OTHER}", 6, "twice"),
        ("[Peer]  # the proxy", "[Peers]", 8, "neither"),
        ("Endpoint = [2001:db8::1]:51820", "Endpoint = 2001:db8::1:51820", 13, "host:port"),
        ("Endpoint = [2001:db8::1]:51820", "Endpoint = example.com", 13, "host:port"),
        ("Endpoint = [2001:db8::1]:51820", "Endpoint = example.com:0", 13, "host:port"),
        ("AllowedIPs = fd00::1", "AllowedIPs = fd00::g", 12, "network"),
        ("PersistentKeepalive = 25", "PersistentKeepalive = often", 14, "PersistentKeepalive"),
        ("PersistentKeepalive = 25", "Address = 10.0.0.1/32", 14, "unknown key Address in [Peer]"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey = {PRIVATE[:-2]}", 4, "PrivateKey"),
        (f"PrivateKey = {PRIVATE}", "", 3, "no PrivateKey"),
        (f"publickey={PUBLIC}", "", 8, "no PublicKey"),
        ("Address = 100.64.0.5/32, fd00::5/128", "", 3, "no Address"),
        ("# alice", "MTU = 1280", 2, "before any section"),
    ],
)
def test_names_the_line_that_is_wrong(before: str, after: str, line: int, says: str) -> None:
    """An invalid line is an error that names its place and never shows a key."""
    assert before in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_config(GOOD.replace(before, after), name="alice.conf")
    assert str(caught.value).startswith(f"alice.conf:{line}: ")
    assert says in str(caught.value)
    assert PRIVATE[:-2] not in str(caught.value)


def test_needs_one_interface() -> None:
    """A file must have exactly one [Interface] section."""
    for text in ("", GOOD + f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1\n"):
        with pytest.raises(ConfigError, match="exactly one"):
            parse_config(text)


def test_one_peer_once() -> None:
    """Two sections with the same public key are refused."""
    with pytest.raises(ConfigError, match="same PublicKey"):
        parse_config(GOOD + f"[Peer]\nPublicKey = {PUBLIC}\nAllowedIPs = 10.0.0.1\n")
