"""The account's own settings, and who may do what in it."""

from typing import Any

import pytest

from netbird_management.model.accounts import Role, User
from netbird_management.operations.users import create_token, create_user
from netbird_management.rest.permissions import MODULES, OPERATIONS, may
from netbird_management.store.models import UserRow
from tests.netbird_management.conftest import Api, Home


async def test_settings_are_changed_and_kept(api: Api) -> None:
    """What is sent is stored, what may be left out stays, and the domain of peers moves with it."""
    (account,) = await api.ok("GET", "/api/accounts")
    settings = {**account["settings"], "lazy_connection_enabled": True, "dns_domain": "Peers.Test"}
    changed = await api.ok("PUT", f"/api/accounts/{account['id']}", {"settings": settings})
    assert changed["settings"] == {**settings, "dns_domain": "peers.test"}
    del settings["lazy_connection_enabled"]
    again = await api.ok("PUT", f"/api/accounts/{account['id']}", {"settings": settings})
    assert again["settings"] == changed["settings"]
    assert (await api.ok("GET", "/api/accounts"))[0] == again


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"peer_inactivity_expiration_enabled": True}, 422),
        ({"peer_expose_enabled": True}, 422),
        ({"jwt_groups_enabled": True}, 422),
        ({"peer_expose_groups": ["nope"]}, 422),
        ({"peer_login_expiration": -1}, 422),
        ({"peer_login_expiration": 0}, 422),
        ({"dns_domain": "not a domain"}, 422),
        ({"network_range": "10.0.0.0/8"}, 422),
        ({"peer_expose_groups": None}, 400),
    ],
)
async def test_what_is_not_there_is_refused(api: Api, fields: dict[str, Any], status: int) -> None:
    """A setting that would do nothing is not taken."""
    (account,) = await api.ok("GET", "/api/accounts")
    body = {"settings": {**account["settings"], **fields}}
    assert (await api.refused("PUT", f"/api/accounts/{account['id']}", body))[0] == status
    assert (await api.ok("GET", "/api/accounts"))[0] == account


async def test_an_account_goes_with_all_it_has(api: Api) -> None:
    """Afterwards nobody is there to ask, not even the owner."""
    (account,) = await api.ok("GET", "/api/accounts")
    assert (await api.refused("DELETE", "/api/accounts/other"))[0] == 404
    assert await api.ok("DELETE", f"/api/accounts/{account['id']}") == {}
    assert (await api.refused("GET", "/api/accounts"))[0] == 401
    assert await api.ok("GET", "/api/instance") == {"setup_required": True}


def _user(home: Home, role: Role, *, service: bool = False) -> User:
    return User(
        id=home.owner.id,
        account_id=home.account_id,
        role=role,
        created_at=home.owner.created_at,
        is_service_user=service,
    )


def test_the_table_of_roles(home: Home) -> None:
    """Owner everything, admin all but writing accounts, auditor reads, network admin its list, user nothing."""
    for module in MODULES:
        for operation in OPERATIONS:
            reads = operation == "read"
            assert may(_user(home, Role.OWNER), module, operation)
            assert may(_user(home, Role.ADMIN), module, operation) is (reads or module != "accounts")
            assert may(_user(home, Role.AUDITOR), module, operation) is reads
            assert may(_user(home, Role.USER), module, operation) is False
            assert may(_user(home, Role.USER, service=True), module, operation) is reads
    network = _user(home, Role.NETWORK_ADMIN)
    assert may(network, "policies", "delete")
    assert may(network, "peers", "read")
    assert not may(network, "peers", "update")
    assert not may(network, "services", "read")
    assert not may(_user(home, Role.OWNER), "nonsense", "read")


async def _as(api: Api, role: Role) -> dict[str, str]:
    user = await create_user(api.home.state, api.home.account_id, role=role, email=f"{role}@lab.test")
    _, token = await create_token(api.home.state, user, name="t", days=1, created_by=user.id)
    return {"authorization": f"Token {token}"}


async def test_roles_hold_at_the_api(api: Api) -> None:
    """The auditor sees and changes nothing; the network admin changes policies and sees no services."""
    auditor, network = await _as(api, Role.AUDITOR), await _as(api, Role.NETWORK_ADMIN)
    await api.ok("GET", "/api/reverse-proxies/services", headers=auditor)
    await api.ok("GET", "/api/peers", headers=auditor)
    assert (await api.refused("POST", "/api/groups", {"name": "x"}, headers=auditor))[0] == 403
    await api.ok("POST", "/api/groups", {"name": "x"}, headers=network)
    assert (await api.refused("GET", "/api/reverse-proxies/services", headers=network))[0] == 403
    shown = (await api.ok("GET", "/api/users/current", headers=network))["permissions"]
    assert (shown["modules"]["services"]["read"], shown["modules"]["policies"]["update"]) == (False, True)


async def test_who_waits_is_let_in_or_sent_away(api: Api) -> None:
    """Approving lets the user in; rejecting deletes; neither works on somebody who does not wait."""
    state, account_id = api.home.state, api.home.account_id
    users = [await create_user(state, account_id, role=Role.USER, email=f"u{i}@lab.test") for i in range(2)]
    async with state.change(account_id) as transaction:
        for user in users:
            row = await transaction.session.get_one(UserRow, user.id)
            row.pending_approval, row.blocked = True, True
        transaction.touch(users=[user.id for user in users])
    approved = await api.ok("POST", f"/api/users/{users[0].id}/approve")
    assert (approved["pending_approval"], approved["is_blocked"]) == (False, False)
    assert (await api.refused("POST", f"/api/users/{users[0].id}/approve"))[0] == 412
    assert (await api.refused("DELETE", f"/api/users/{users[0].id}/reject"))[0] == 412
    assert await api.ok("DELETE", f"/api/users/{users[1].id}/reject") == {}
    assert users[1].id not in api.home.snapshot.users
