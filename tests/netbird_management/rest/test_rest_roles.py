"""Each role at each operation: what the API's own table of permissions says is written down here once more, by hand."""

import re

import pytest

from netbird_management.model.accounts import Role
from netbird_management.operations.users import create_token, create_user
from netbird_management.rest.app import described
from tests.netbird_management.conftest import Api

MODULES = {
    "users": "users",
    "accounts": "accounts",
    "groups": "groups",
    "setup-keys": "setup_keys",
    "policies": "policies",
    "networks": "networks",
    "dns/settings": "dns",
    "dns/nameservers": "nameservers",
    "dns/zones": "dns",
    "reverse-proxies": "services",
    "events/proxy": "services",
    "events": "events",
}
"""What the operations below a path are about; the first that fits."""
EXCEPTIONS = {
    ("POST", "/api/users/{user_id}/approve"): ("users", "update"),
    ("GET", "/api/reverse-proxies/domains/{domain_id}/validate"): ("services", "create"),
    ("PUT", "/api/accounts/{account_id}"): ("settings", "update"),
}
OWN = re.compile(r"/api/(peers|users/current|users/\{user_id\}/tokens)\b")
"""Everybody has these for what is theirs: `test_rest_access` has what they may do to what is not."""
OPERATION = {"GET": "read", "POST": "create", "PUT": "update", "DELETE": "delete"}

NETWORK_ADMIN_WRITES = {"networks", "groups", "dns", "nameservers", "policies"}
NETWORK_ADMIN_READS = {*NETWORK_ADMIN_WRITES, "settings", "accounts", "events", "users", "setup_keys"}


def may(role: Role, module: str, operation: str) -> bool:
    return {
        Role.OWNER: True,
        Role.ADMIN: module != "accounts" or operation == "read",
        Role.AUDITOR: operation == "read",
        Role.NETWORK_ADMIN: module in (NETWORK_ADMIN_READS if operation == "read" else NETWORK_ADMIN_WRITES),
        Role.USER: False,
    }[role]


def asks(method: str, path: str) -> tuple[str, str]:
    if (method, path) in EXCEPTIONS:
        return EXCEPTIONS[method, path]
    return next(module for at, module in MODULES.items() if path.startswith(f"/api/{at}")), OPERATION[method]


JUDGED = [
    (method.upper(), path)
    for path, methods in described()["paths"].items()
    for method, operation in methods.items()
    if "security" in operation and not OWN.match(path)
]


@pytest.mark.parametrize("is_service_user", [False, True], ids=["person", "service user"])
@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OWNER])
async def test_a_role_may_what_it_may(api: Api, role: Role, is_service_user: bool) -> None:
    """403 and one sentence where the role does not reach, whatever is asked about; else the question itself is judged.
    Service users read everything."""
    user = await create_user(
        api.home.state,
        api.home.account_id,
        role=role,
        email="" if is_service_user else "x@lab.test",
        name="x",
        is_service_user=is_service_user,
    )
    _, token = await create_token(api.home.state, user, name="t", days=1, created_by=user.id)
    headers = {"authorization": f"Token {token}"}
    wrong = []
    for method, path in JUDGED:
        module, operation = asks(method, path)
        expected = may(role, module, operation) or (is_service_user and operation == "read")
        answer = await api.call(method, re.sub(r"\{\w+\}", "nothing", path), {}, headers=headers)
        refused = answer.status_code == 403
        if refused and answer.json() != {"message": "permission denied", "code": 403}:
            wrong.append((method, path, answer.text))
        if refused is expected or answer.status_code in (401, 500):
            wrong.append((method, path, answer.status_code))
    assert wrong == []


async def test_the_owner_may_everything(api: Api) -> None:
    """What is not there is 404 and what is not said 4xx, in the same form; nothing is forbidden."""
    for method, path in JUDGED:
        answer = await api.call(method, re.sub(r"\{\w+\}", "nothing", path), {})
        assert answer.status_code not in (401, 403, 500), (method, path)
        if "{" in path and method in ("GET", "DELETE"):
            assert (answer.status_code, answer.json()["code"]) == (404, 404), (method, path)
