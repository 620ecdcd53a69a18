"""Membership of peers in groups; only this module writes it."""

from collections.abc import Iterable

from sqlalchemy import delete

from netbird_management.model.ids import GroupId, PeerId
from netbird_management.store.engine import insert
from netbird_management.store.models import GroupPeerRow
from netbird_management.store.state import Transaction


async def move(
    transaction: Transaction, peers: Iterable[PeerId], *, leave: Iterable[GroupId] = (), join: Iterable[GroupId] = ()
) -> None:
    """Moves peers from groups to other groups, which must exist. A proxy's peer joins no group."""
    ids, left, joined = list(peers), list(leave), list(join)
    if not ids or not (left or joined):
        return
    if left:
        deletion = delete(GroupPeerRow).where(GroupPeerRow.peer_id.in_(ids), GroupPeerRow.group_id.in_(left))
        await transaction.session.execute(deletion)
    if joined:
        pairs = [{"group_id": group_id, "peer_id": peer_id} for group_id in joined for peer_id in ids]
        rows = insert(transaction.session, GroupPeerRow).on_conflict_do_nothing()
        await transaction.session.execute(rows, pairs)
    transaction.touch(groups=[*left, *joined], peers=ids)
    await transaction.raise_serial()
