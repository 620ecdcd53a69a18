"""Revalidations and revocations: the access that a commit may have withdrawn. Management sends them to proxies at once,
so that no open exchange or session outlives it."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from netbird_management.compute.differences import lasting
from netbird_management.model.accounts import Revoked
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot, Change
from netbird_wire.proxy_service_pb2 import Revalidation, Revocation

AT_MOST: Final = 200
"""Maximum number of revalidations for a commit; more become a single one for the whole account."""


def revalidations(change: Change) -> list[Revalidation]:
    """The users, peers and services whose access proxies must validate again.

    It may contain more than necessary, as a revalidation changes no access by itself.
    """
    before, after = change.before, change.after
    if before is None:
        return []  # nobody had access to anything
    account = Revalidation(account_id=change.account_id)
    if after is None or _concerns_all(before, after):
        return [account]
    entries = list(islice(_entries(change, before, after), AT_MOST + 1))
    return entries if len(entries) <= AT_MOST else [account]


def revocations(change: Change) -> list[Revocation]:
    """The sessions that this commit ended."""
    earlier = {revoked.id for revoked in change.before.revocations} if change.before is not None else set()
    if change.after is None:
        return []
    return [revocation(change.account_id, revoked) for revoked in change.after.revocations if revoked.id not in earlier]


def revocation(account_id: str, revoked: Revoked) -> Revocation:
    moment = Timestamp()
    moment.FromDatetime(revoked.not_before)
    wire = Revocation(account_id=account_id, not_before=moment)
    if revoked.token_hash:
        wire.token_hash = revoked.token_hash
    else:
        wire.subject = revoked.subject
    return wire


def _concerns_all(before: AccountSnapshot, after: AccountSnapshot) -> bool:
    return before.account.settings != after.account.settings


def _entries(change: Change, before: AccountSnapshot, after: AccountSnapshot) -> Iterator[Revalidation]:
    yield from _of_users(change, before, after)
    yield from _of_peers(change, before, after)
    yield from _of_services(change, before, after)


def _of_users(change: Change, before: AccountSnapshot, after: AccountSnapshot) -> Iterator[Revalidation]:
    for user_id in sorted(change.touched.users):
        user, now = before.users.get(user_id), after.users.get(user_id)
        if user is not None and (now is None or lasting(user) != lasting(now)):
            yield Revalidation(account_id=change.account_id, user_id=user_id)


def _of_peers(change: Change, before: AccountSnapshot, after: AccountSnapshot) -> Iterator[Revalidation]:
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
            yield Revalidation(account_id=change.account_id, peer_key=peer.key)


def _of_services(change: Change, before: AccountSnapshot, after: AccountSnapshot) -> Iterator[Revalidation]:
    for service_id in sorted(change.touched.services):
        service, now_service = before.services.get(service_id), after.services.get(service_id)
        if service is not None and (now_service is None or _access(service) != _access(now_service)):
            yield Revalidation(account_id=change.account_id, service_id=service_id)


def _groups(account: AccountSnapshot, peer_id: str) -> frozenset[tuple[str, str]]:
    return frozenset((group.id, group.name) for group in account.groups_of(peer_id))  # type: ignore[arg-type]


def _access(service: Service) -> tuple[object, ...]:
    """The fields of a service that decide access to it. Its targets do not: mappings carry their changes."""
    return (
        service.domain,
        service.served,
        service.private,
        service.access_groups,
        service.auth,
        service.access_restrictions,
        service.session_public_key,
    )
