"""Whose access a commit may have taken away: what proxies are told at once, so that nothing open outlives it."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from netbird_management.compute.differences import lasting
from netbird_management.model.accounts import Revoked
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot, Change
from netbird_wire.proxy_service_pb2 import Revalidation, Revocation

AT_MOST: Final = 200
"""More of them in one commit are told as the whole account."""


def revalidations(change: Change) -> list[Revalidation]:
    """The users whose sessions proxies ask about again; more than needed do no harm, as asking changes no access."""
    before, after = change.before, change.after
    if before is None:
        return []  # nobody had access to anything
    account = Revalidation(account_id=change.account_id)
    if after is None or _is_about_all(before, after):
        return [account]
    found: list[Revalidation] = []
    for one in _told(change, before, after):
        found.append(one)
        if len(found) > AT_MOST:
            return [account]
    return found


def revocations(change: Change) -> list[Revocation]:
    """The sessions that this commit ended."""
    known = {one.id for one in change.before.revocations} if change.before is not None else set()
    if change.after is None:
        return []
    return [revocation(change.account_id, one) for one in change.after.revocations if one.id not in known]


def revocation(account_id: str, one: Revoked) -> Revocation:
    moment = Timestamp()
    moment.FromDatetime(one.not_before)
    wire = Revocation(account_id=account_id, not_before=moment)
    if one.token_hash:
        wire.token_hash = one.token_hash
    else:
        wire.subject = one.subject
    return wire


def _is_about_all(before: AccountSnapshot, after: AccountSnapshot) -> bool:
    return before.account.settings != after.account.settings


def _told(change: Change, before: AccountSnapshot, after: AccountSnapshot) -> Iterator[Revalidation]:
    account_id = change.account_id
    for user_id in sorted(change.touched.users):
        user, now = before.users.get(user_id), after.users.get(user_id)
        if user is not None and (now is None or lasting(user) != lasting(now)):
            yield Revalidation(account_id=account_id, user_id=user_id)
    peers = {id_ for id_ in change.touched.peers if id_ in before.peers}
    for group_id in change.touched.groups:
        group, now_group = before.groups.get(group_id), after.groups.get(group_id)
        members = group.peers if group is not None else frozenset()
        members_now = now_group.peers if now_group is not None else frozenset()
        renamed = group is not None and now_group is not None and group.name != now_group.name
        peers |= (members | members_now) if renamed else (members ^ members_now)
    for peer_id in sorted(peers):
        peer, now_peer = before.peers.get(peer_id), after.peers.get(peer_id)
        if peer is None or peer.proxy is not None:
            continue
        moved = now_peer is not None and _groups(before, peer_id) != _groups(after, peer_id)
        if now_peer is None or moved or lasting(peer) != lasting(now_peer):
            yield Revalidation(account_id=account_id, peer_key=peer.key)
    for service_id in sorted(change.touched.services):
        service, now_service = before.services.get(service_id), after.services.get(service_id)
        if service is not None and (now_service is None or _access(service) != _access(now_service)):
            yield Revalidation(account_id=account_id, service_id=service_id)


def _groups(account: AccountSnapshot, peer_id: str) -> frozenset[tuple[str, str]]:
    return frozenset((group.id, group.name) for group in account.groups_of(peer_id))  # type: ignore[arg-type]


def _access(service: Service) -> tuple[object, ...]:
    """What decides who may use it. Where it leads is the mapping's business."""
    return (
        service.domain,
        service.served,
        service.private,
        service.access_groups,
        service.auth,
        service.access_restrictions,
        service.session_public_key,
    )
