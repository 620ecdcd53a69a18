"""Configuration of a stock WireGuard client: only the entries it needs to reach the account's proxies."""

from netbird_management.model.accounts import Peer
from netbird_management.model.errors import Conflict
from netbird_management.model.snapshot import AccountSnapshot

MTU = 1280
KEEPALIVE_SECONDS = 25


def wireguard_config(peer: Peer, account: AccountSnapshot) -> str:
    """The configuration file for `wg-quick` and the WireGuard apps. The client adds its private key, which management
    never receives.

    Raises `Conflict` if no proxy of the account has reported an endpoint.
    """
    proxies = sorted(
        (other for other in account.peers.values() if other.proxy is not None and other.proxy.wireguard_endpoint),
        key=lambda other: other.id,
    )
    if not proxies:
        raise Conflict(
            "no proxy of this account has a WireGuard endpoint yet: start one with [tunnel] endpoint_host set"
        )
    lines = ["[Interface]", f"# {peer.name}", "# PrivateKey =", f"Address = {peer.ip}/32", f"MTU = {MTU}"]
    for proxy in proxies:
        assert proxy.proxy is not None  # noqa: S101 - chosen above
        lines += [
            "",
            "[Peer]",
            f"# {proxy.name} ({proxy.proxy.cluster})",
            f"PublicKey = {proxy.key}",
            f"AllowedIPs = {proxy.ip}/32",
            f"Endpoint = {proxy.proxy.wireguard_endpoint}",
            f"PersistentKeepalive = {KEEPALIVE_SECONDS}",
        ]
    return "\n".join(lines) + "\n"
