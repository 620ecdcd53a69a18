"""Decisions on the access of a peer of the overlay to a service, from the snapshot and without a query of the store.

The order of the checks is part of the contract, as it decides the reason of a denial.
"""

import logging
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import grpc

from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import AuthenticatedProxy
from netbird_management.grpc.recorder import Recorder
from netbird_management.model.accounts import Group, Peer, User
from netbird_management.model.admission import peer_refusal
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import ALLOW, Decision, Deny, Management
from netbird_management.secrets.session_tokens import sign
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import Principal, ValidateTunnelPeerRequest, ValidateTunnelPeerResponse

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A peer with its owner, if it has one, and its groups."""

    peer: Peer
    owner: User | None
    groups: tuple[Group, ...]

    @property
    def user_id(self) -> str:
        """The owner's id, even if the owner no longer exists; the peer's id if it has no owner."""
        return self.peer.user_id or self.peer.id

    @property
    def email(self) -> str:
        return self.owner.email if self.owner is not None and self.owner.email else self.peer.name


class TunnelPeers:
    """Answers `ValidateTunnelPeer`."""

    def __init__(self, state: State, hooks: Hooks, management: Management, recorder: Recorder) -> None:
        self._state = state
        self._hooks = hooks
        self._management = management
        self._recorder = recorder
        self._private_gates = frozenset(
            plugin.id for plugin in hooks.plugins if any(claim.field == "private" for claim in plugin.info.claims)
        )

    async def validate(
        self, request: ValidateTunnelPeerRequest, caller: AuthenticatedProxy
    ) -> ValidateTunnelPeerResponse:
        """Raises `Refused` for a service of an account that the caller's token does not permit."""
        if not request.domain or not request.tunnel_ip:
            return _denied("missing domain or tunnel_ip")
        address = _address(request.tunnel_ip)
        if address is None:
            return _denied("invalid_tunnel_ip")
        match = self._state.snapshots.by_domain(request.domain)
        if match is None:
            return _denied("service_not_found")
        account, service = match
        caller.check_account(service.account_id)
        peer = account.peer_by_address(address)
        if peer is None or (request.peer_key and request.peer_key != peer.key):
            return _denied("peer_not_found")
        member = Member(
            peer=peer,
            owner=None if peer.user_id is None else account.users.get(peer.user_id),
            groups=account.groups_of(peer.id),
        )
        decision = self._decision(service, account, member)
        answer = _identity(member)
        if decision is not ALLOW:
            answer.denied_reason = decision.reason
            if decision.reason == "not_in_group":
                answer.required_group_ids.extend(group.id for group in decision.required_groups)
                answer.required_group_names.extend(group.name for group in decision.required_groups)
            return answer
        answer.session_token = await self._session_token(service, member)
        answer.valid = True
        self._recorder.seen(peer)
        return answer

    def _decision(self, service: Service, account: AccountSnapshot, member: Member) -> Decision:
        if (reason := peer_refusal(member.peer, account)) is not None:
            return Deny(reason.value)
        bearer = service.auth.bearer_auth
        if not service.private and bearer is not None and bearer.enabled and bearer.distribution_groups:
            required = bearer.distribution_groups
            if not any(group.id in required for group in member.groups):
                return Deny("not_in_group", tuple(account.groups[id_] for id_ in required if id_ in account.groups))
        return self._gated(service, account, member)

    def _gated(self, service: Service, account: AccountSnapshot, member: Member) -> Decision:
        """The decision of the plugins' gates. A private service without a gate of the plugin that claims `private`
        admits no peer."""
        try:
            gates = self._hooks.peer_gates(service, self._management)
            if service.private and not any(plugin in self._private_gates for plugin, _ in gates):
                return Deny("not_in_group")
            for plugin, gate in gates:
                decision = gate(peer=member.peer, groups=member.groups, account=account)
                if isinstance(decision, Deny):
                    return decision if decision.reason else Deny("denied")
                if decision is not ALLOW:
                    raise TypeError(f"plugin {plugin} returned {type(decision).__name__}")
        except Exception:
            # Any exception of a plugin denies access.
            _log.exception("peer_gate.failed", extra={"service_id": service.id})
            return Deny("gate_failed")
        return ALLOW

    async def _session_token(self, service: Service, member: Member) -> str:
        try:
            key = await self._state.session_keys.of(service)
            return sign(key, service.domain, member.user_id, "oidc", email=member.email, groups=member.groups)
        except Exception as error:
            _log.exception("session.sign.failed", extra={"service_id": service.id})
            raise Refused(grpc.StatusCode.INTERNAL, "the session could not be signed") from error


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _denied(reason: str) -> ValidateTunnelPeerResponse:
    return ValidateTunnelPeerResponse(denied_reason=reason)


def _identity(member: Member) -> ValidateTunnelPeerResponse:
    return ValidateTunnelPeerResponse(
        user_id=member.user_id,
        user_email=member.email,
        peer_group_ids=[group.id for group in member.groups],
        peer_group_names=[group.name for group in member.groups],
        principal=Principal(user_id=member.peer.user_id or "", peer_id=member.peer.id, peer_name=member.peer.name),
    )
