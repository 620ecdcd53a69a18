"""The members of a private service: `GET /api/reverse-proxies/services/{id}/members`."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from netbird_management import ApiCaller, Management, ServiceId, admitted


class MemberGroup(BaseModel):
    id: str
    name: str


class Member(BaseModel):
    """A peer, with the access groups that make it a member. `user_id` is "" for a peer without a user."""

    id: str
    name: str
    ip: str
    connected: bool
    user_id: str
    groups: list[MemberGroup]


def members_router(management: Management) -> APIRouter:
    """Return the router; its operation requires the permission to read services."""
    router = APIRouter(prefix="/reverse-proxies/services", tags=["reverse-proxies"])
    reader = management.allowed("services", "read")

    @router.get("/{service_id}/members")
    async def members(service_id: str, who: ApiCaller = reader) -> list[Member]:
        """List the members of a private service, sorted by name: peers in its access groups with an active owner."""
        account = who.account
        service = account.services.get(ServiceId(service_id))
        if service is None:
            raise HTTPException(404, f"service {service_id} not found")
        if not service.private:
            raise HTTPException(409, "the service is not private: it has no members")
        access_groups = frozenset(service.access_groups)
        peers = (account.peers[id_] for id_ in account.members(access_groups) if id_ in account.peers)
        return [
            Member(
                id=peer.id,
                name=peer.name,
                ip=str(peer.ip),
                connected=peer.connected,
                user_id=peer.user_id or "",
                groups=[
                    MemberGroup(id=group.id, name=group.name)
                    for group in account.groups_of(peer.id)
                    if group.id in access_groups
                ],
            )
            for peer in sorted(peers, key=lambda peer: (peer.name, peer.id))
            if admitted(peer, account)
        ]

    return router
