"""Kinds of recorded changes: a stable code for programs and a sentence for people."""

from enum import StrEnum
from typing import Final


class Activity(StrEnum):
    """Codes that clients of the events API read."""

    ACCOUNT_CREATE = "account.create"
    ACCOUNT_SETTINGS = "account.setting.update"
    USER_CREATE = "user.create"
    USER_ROLE = "user.role.update"
    USER_GROUPS = "user.groups.update"
    USER_BLOCK = "user.block"
    USER_UNBLOCK = "user.unblock"
    USER_APPROVE = "user.approve"
    USER_REJECT = "user.reject"
    USER_DELETE = "user.delete"
    USER_JOIN = "user.join"
    USER_LINK = "user.link"
    USER_LOGIN = "user.login"
    PERSONAL_TOKEN_CREATE = "personal.access.token.create"  # noqa: S105 - a code
    PERSONAL_TOKEN_DELETE = "personal.access.token.delete"  # noqa: S105 - a code
    GROUP_ADD = "group.add"
    GROUP_UPDATE = "group.update"
    GROUP_DELETE = "group.delete"
    POLICY_ADD = "policy.add"
    POLICY_UPDATE = "policy.update"
    POLICY_DELETE = "policy.delete"
    PEER_ADD = "peer.add"
    PEER_ADD_BY_USER = "user.peer.add"
    PEER_ADD_BY_KEY = "setupkey.peer.add"
    PEER_RENAME = "peer.rename"
    PEER_DELETE = "user.peer.delete"
    PEER_EXPIRY_ENABLE = "peer.login.expiration.enable"
    PEER_EXPIRY_DISABLE = "peer.login.expiration.disable"
    PEER_LOGIN_EXPIRE = "peer.login.expire"
    PEER_LOGIN_RENEW = "user.peer.login"
    SETUP_KEY_ADD = "setupkey.add"
    SETUP_KEY_UPDATE = "setupkey.update"
    SETUP_KEY_REVOKE = "setupkey.revoke"
    SETUP_KEY_DELETE = "setupkey.delete"
    NAMESERVERS_ADD = "nameserver.group.add"
    NAMESERVERS_UPDATE = "nameserver.group.update"
    NAMESERVERS_DELETE = "nameserver.group.delete"
    DNS_SETTINGS = "dns.setting.update"
    ZONE_ADD = "dns.zone.add"
    ZONE_UPDATE = "dns.zone.update"
    ZONE_DELETE = "dns.zone.delete"
    NETWORK_ADD = "network.create"
    NETWORK_UPDATE = "network.update"
    NETWORK_DELETE = "network.delete"
    RESOURCE_ADD = "network.resource.create"
    RESOURCE_UPDATE = "network.resource.update"
    RESOURCE_DELETE = "network.resource.delete"
    ROUTER_ADD = "network.router.create"
    ROUTER_UPDATE = "network.router.update"
    ROUTER_DELETE = "network.router.delete"
    SERVICE_CREATE = "service.create"
    SERVICE_UPDATE = "service.update"
    SERVICE_DELETE = "service.delete"
    DOMAIN_ADD = "domain.add"
    DOMAIN_DELETE = "domain.delete"
    DOMAIN_VALIDATE = "domain.validate"


SENTENCES: Final = {
    Activity.ACCOUNT_CREATE: "Account created",
    Activity.ACCOUNT_SETTINGS: "Account settings updated",
    Activity.USER_CREATE: "User created",
    Activity.USER_ROLE: "User role updated",
    Activity.USER_GROUPS: "User groups updated",
    Activity.USER_BLOCK: "User blocked",
    Activity.USER_UNBLOCK: "User unblocked",
    Activity.USER_APPROVE: "User approved",
    Activity.USER_REJECT: "User rejected",
    Activity.USER_DELETE: "User deleted",
    Activity.USER_JOIN: "User joined by the identity provider",
    Activity.USER_LINK: "User linked to the identity provider",
    Activity.USER_LOGIN: "User logged in by the identity provider",
    Activity.PERSONAL_TOKEN_CREATE: "Personal access token created",
    Activity.PERSONAL_TOKEN_DELETE: "Personal access token deleted",
    Activity.GROUP_ADD: "Group created",
    Activity.GROUP_UPDATE: "Group updated",
    Activity.GROUP_DELETE: "Group deleted",
    Activity.POLICY_ADD: "Policy added",
    Activity.POLICY_UPDATE: "Policy updated",
    Activity.POLICY_DELETE: "Policy deleted",
    Activity.PEER_ADD: "Peer added",
    Activity.PEER_ADD_BY_USER: "Peer added by its user",
    Activity.PEER_ADD_BY_KEY: "Peer added with a setup key",
    Activity.PEER_RENAME: "Peer renamed",
    Activity.PEER_DELETE: "Peer deleted",
    Activity.PEER_EXPIRY_ENABLE: "Expiry of the peer's login enabled",
    Activity.PEER_EXPIRY_DISABLE: "Expiry of the peer's login disabled",
    Activity.PEER_LOGIN_EXPIRE: "Login of the peer expired",
    Activity.PEER_LOGIN_RENEW: "Login of the peer renewed by its user",
    Activity.SETUP_KEY_ADD: "Setup key created",
    Activity.SETUP_KEY_UPDATE: "Setup key updated",
    Activity.SETUP_KEY_REVOKE: "Setup key revoked",
    Activity.SETUP_KEY_DELETE: "Setup key deleted",
    Activity.NAMESERVERS_ADD: "Nameserver group created",
    Activity.NAMESERVERS_UPDATE: "Nameserver group updated",
    Activity.NAMESERVERS_DELETE: "Nameserver group deleted",
    Activity.DNS_SETTINGS: "DNS settings updated",
    Activity.ZONE_ADD: "DNS zone created",
    Activity.ZONE_UPDATE: "DNS zone updated",
    Activity.ZONE_DELETE: "DNS zone deleted",
    Activity.NETWORK_ADD: "Network created",
    Activity.NETWORK_UPDATE: "Network updated",
    Activity.NETWORK_DELETE: "Network deleted",
    Activity.RESOURCE_ADD: "Network resource created",
    Activity.RESOURCE_UPDATE: "Network resource updated",
    Activity.RESOURCE_DELETE: "Network resource deleted",
    Activity.ROUTER_ADD: "Network router created",
    Activity.ROUTER_UPDATE: "Network router updated",
    Activity.ROUTER_DELETE: "Network router deleted",
    Activity.SERVICE_CREATE: "Service created",
    Activity.SERVICE_UPDATE: "Service updated",
    Activity.SERVICE_DELETE: "Service deleted",
    Activity.DOMAIN_ADD: "Domain added",
    Activity.DOMAIN_DELETE: "Domain deleted",
    Activity.DOMAIN_VALIDATE: "Domain validated",
}
