"""Adds an operation to the REST API, for users who may read services."""

from __future__ import annotations

from fastapi import APIRouter

from netbird_management import ApiCaller, Management, PluginInfo, hookimpl


class Summary:
    """`GET /api/summary` returns the number of services, and of private ones."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="counts an account's services")

    @hookimpl
    def routes(self, management: Management) -> APIRouter:
        router = APIRouter()
        reader = management.allowed("services", "read")

        @router.get("/summary")
        async def summary(who: ApiCaller = reader) -> dict[str, int]:
            services = who.account.services.values()
            return {"services": len(services), "private": sum(service.private for service in services)}

        return router
