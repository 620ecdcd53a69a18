"""Configuration of a stock WireGuard client: only the entries it needs to reach the account's proxies."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from netbird_management.compute.zones import addresses_between
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
    # The client uses IPv6 in the overlay if a proxy does: without a route of its own, an address would be of no use.
    own = max((addresses_between(proxy, peer) for proxy in proxies), key=len)
    lines = ["[Interface]", f"# {peer.name}", "# PrivateKey =", f"Address = {_networks(own)}", f"MTU = {MTU}"]
    groups = {group.id for group in account.groups_of(peer.id)}
    answering = [proxy for proxy in proxies if proxy.proxy is not None and proxy.proxy.serves_dns]
    dns = [str(address) for proxy in answering for address in addresses_between(peer, proxy)]
    if dns and groups.isdisjoint(account.account.settings.disabled_management_groups):
        # Without such a line the client keeps its own servers, which do not know the account's names.
        lines.append(f"DNS = {', '.join(dns)}")
    for proxy in proxies:
        assert proxy.proxy is not None  # noqa: S101 - chosen above
        lines += [
            "",
            "[Peer]",
            f"# {proxy.name} ({proxy.proxy.cluster})",
            f"PublicKey = {proxy.key}",
            f"AllowedIPs = {_networks(addresses_between(peer, proxy))}",
            f"Endpoint = {proxy.proxy.wireguard_endpoint}",
            f"PersistentKeepalive = {KEEPALIVE_SECONDS}",
        ]
    return "\n".join(lines) + "\n"


def _networks(addresses: Iterable[IPv4Address | IPv6Address]) -> str:
    return ", ".join(f"{address}/{address.max_prefixlen}" for address in addresses)
