"""Setup keys in the API."""

from typing import Any

import pytest

from tests.netbird_management.conftest import Api

KEYS = "/api/setup-keys"
GIVEN: dict[str, Any] = {
    "name": "servers",
    "type": "reusable",
    "expires_in": 86400,
    "auto_groups": [],
    "usage_limit": 2,
}


async def test_a_key_is_shown_once(api: Api) -> None:
    """The text is an upper-case UUID in the answer that made it; afterwards only its beginning is known."""
    made = await api.ok("POST", KEYS, GIVEN)
    assert len(made["key"]) == 36
    assert made["key"] == made["key"].upper()
    (listed,) = await api.ok("GET", KEYS)
    assert listed["key"] == made["key"][:5] + "****"
    assert (listed["state"], listed["valid"], listed["used_times"]) == ("valid", True, 0)
    assert await api.ok("GET", f"{KEYS}/{made['id']}") == listed


async def test_a_key_is_revoked_for_good(api: Api) -> None:
    """Revoking shows in its state and cannot be taken back; deleting forgets it."""
    made = await api.ok("POST", KEYS, {**GIVEN, "type": "one-off", "usage_limit": 1})
    assert made["usage_limit"] == 1
    changed = await api.ok("PUT", f"{KEYS}/{made['id']}", {"revoked": True, "auto_groups": []})
    assert (changed["state"], changed["valid"]) == ("revoked", False)
    assert (await api.refused("PUT", f"{KEYS}/{made['id']}", {"revoked": False, "auto_groups": []}))[0] == 422
    assert (await api.refused("PUT", f"{KEYS}/{made['id']}", {"revoked": True}))[0] == 400
    assert await api.ok("DELETE", f"{KEYS}/{made['id']}") == {}
    assert (await api.refused("GET", f"{KEYS}/{made['id']}"))[0] == 404


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"type": "forever"},
        {"expires_in": -1},
        {"usage_limit": -1},
        {"usage_limit": 1 << 31},
        {"type": "one-off", "usage_limit": 5},
        {"auto_groups": ["nope"]},
    ],
)
async def test_what_a_key_cannot_be(api: Api, given: dict[str, Any]) -> None:
    """Each rule by itself."""
    assert (await api.refused("POST", KEYS, {**GIVEN, **given}))[0] == 422


async def test_a_key_may_allow_extra_labels(api: Api) -> None:
    """It says so whenever it is shown."""
    made = await api.ok("POST", KEYS, {**GIVEN, "allow_extra_dns_labels": True})
    assert made["allow_extra_dns_labels"]
    assert (await api.ok("GET", f"{KEYS}/{made['id']}"))["allow_extra_dns_labels"]
    assert not (await api.ok("POST", KEYS, GIVEN))["allow_extra_dns_labels"]


async def test_a_group_of_a_key_stays(api: Api) -> None:
    """A group that a key puts peers into cannot be deleted."""
    group = await api.ok("POST", "/api/groups", {"name": "servers"})
    await api.ok("POST", KEYS, {**GIVEN, "auto_groups": [group["id"]]})
    assert "setup key: servers" in (await api.refused("DELETE", f"/api/groups/{group['id']}"))[1]
