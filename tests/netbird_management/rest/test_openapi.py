"""The OpenAPI document: whole, fresh, and true under generated requests."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
import schemathesis.checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from docs.openapi import first_party_routes
from netbird_management.model.clock import now
from netbird_management.model.ids import ProxyId
from netbird_management.model.services import AccessLogEntry, Capabilities
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration, register_proxy
from netbird_management.operations.setup_keys import create_setup_key
from netbird_management.operations.users import create_token
from netbird_management.rest import openapi
from netbird_management.rest.app import create_app, described
from netbird_management.secrets.vault import Vault
from netbird_management.store.state import State
from tests.netbird_management.conftest import Api, Home, context_for
from tests.netbird_management.reports import add_access_log_entries

CHECKED_IN = Path(__file__).parents[3] / "docs" / "openapi.json"
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = int(os.environ.get("NETBIRD_TEST_EXAMPLES", "4"))
"""Requests an operation, from a fixed seed: enough to find what is plainly wrong, and bounded."""


def test_every_operation_is_described() -> None:
    """Each names the shape of its answer, and each that makes or replaces something the shape of its body."""
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            contents = [answer.get("content", {}) for answer in operation["responses"].values()]
            shapes = [one["schema"] for content in contents for one in content.values()]
            assert all(shapes), (method, path)
            assert ("requestBody" in operation) == (method in ("post", "put") and not path.endswith("/approve")), path


def test_the_document_that_is_checked_in_is_fresh() -> None:
    """`make docs` writes it."""
    assert CHECKED_IN.read_text() == openapi.text(described(first_party_routes()))


async def test_the_document_is_served(api: Api) -> None:
    """To anybody: it holds nothing of anybody's."""
    answer = await api.client.get("/api/openapi.json", headers={"authorization": ""})
    assert answer.status_code == 200
    assert json.loads(answer.text)["openapi"].startswith("3.1")


async def _furnish(state: State) -> tuple[Home, str]:
    """An account with one of each thing, under the ids that generated requests then meet."""
    account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
    registration = Registration(
        ProxyId("proxy-1"), "s", "px.test", "127.0.0.1", None, None, Capabilities(True, False, False, True, True)
    )
    await register_proxy(state, registration)
    peer, _ = await create_stock_peer(state, account_id, name="peer", user_id=None)
    await create_group(state, account_id, name="engineering", peers=[peer.id])
    await create_setup_key(state, account_id, name="k", kind="reusable", expires_in=0, auto_groups=[])
    entry = AccessLogEntry("1", account_id, "s", now(), "192.0.2.1", "GET", "h", "/", 1, 200, 0, 1, user_groups=("g",))
    await add_access_log_entries(state, [entry])
    _, token = await create_token(state, owner, name="t", days=1, created_by=owner.id)
    return Home(state, account_id, owner), token


class Loop:
    """The application on a loop of its own, as the generated requests come from none."""

    def __init__(self, directory: Path) -> None:
        self._runner = asyncio.Runner()
        self._directory = directory

    def start(self) -> tuple[Any, str]:
        self._opened = State.open(self._directory, Vault.create(self._directory))
        state = self._runner.run(self._opened.__aenter__())
        home, token = self._runner.run(_furnish(state))
        return create_app(context_for(home), first_party_routes()), token

    def request(self, app: Any, method: str, path: str, **options: Any) -> Any:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return self._runner.run(call())

    def stop(self) -> None:
        self._runner.run(self._opened.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loop, Any, str]]:
    loop = Loop(tmp_path_factory.mktemp("openapi"))
    app, token = loop.start()
    yield loop, app, token
    loop.stop()


schema = schemathesis.openapi.from_dict(described(first_party_routes()))


@pytest.mark.parametrize(
    "operation", [result.ok() for result in schema.get_all_operations()], ids=lambda one: one.label
)
def test_generated_requests_are_answered_as_described(served: tuple[Loop, Any, str], operation: Any) -> None:
    """No 500, and no status, media type or member that the document does not name."""
    loop, app, token = served

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.seed(1)
    @hypothesis.given(case=operation.as_strategy())
    def play(case: Any) -> None:
        if operation.label == "DELETE /api/accounts/{account_id}":
            return  # the account would be gone for the others
        kwargs = case.as_transport_kwargs(base_url="http://localhost")
        kwargs["headers"] = {**kwargs.get("headers", {}), "authorization": f"Token {token}"}
        answer = loop.request(
            app,
            kwargs["method"],
            kwargs["url"],
            **{name: kwargs[name] for name in ("headers", "params", "json", "content") if kwargs.get(name) is not None},
        )
        case.validate_response(answer, checks=CHECKS)

    play()
