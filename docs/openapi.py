"""Writes `openapi.json`, of the API with the plugins that a host has by default: run by `make docs`."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from netbird_management.defaults import DEFAULTS
from netbird_management.model.ids import AccountId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import load_hooks
from netbird_management.plugins.steps import OptionsT, ProxyCaller
from netbird_management.rest import openapi
from netbird_management.rest.app import described
from netbird_management.rest.auth import allowed
from netbird_management.rest.permissions import Operation
from netbird_management.settings import ManagementSettings


class _Describing:
    """The host as plugins see it where their routes are only described."""

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        return None

    def options(self, model: type[OptionsT]) -> OptionsT:
        return model()

    def allowed(self, module: str, operation: Operation) -> Any:
        return allowed(module, operation)

    def proxy_caller(self) -> ProxyCaller:
        raise LookupError("no call is under way")


def first_party_routes() -> tuple[tuple[str, APIRouter], ...]:
    """Return the additions of the default plugins."""
    hooks = load_hooks(ManagementSettings.model_fields["plugins"].default, defaults=DEFAULTS)
    return hooks.routes(_Describing())


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(openapi.text(described(first_party_routes())))
