"""The permissions of each role."""

from typing import Final, Literal

from netbird_management.model.accounts import Role, User

Operation = Literal["create", "read", "update", "delete"]
OPERATIONS: Final[tuple[Operation, ...]] = ("create", "read", "update", "delete")
MODULES: Final = (
    "accounts",
    "dns",
    "events",
    "groups",
    "identity_providers",
    "nameservers",
    "networks",
    "pats",
    "peers",
    "policies",
    "remote_jobs",
    "routes",
    "services",
    "settings",
    "setup_keys",
    "users",
)
_NETWORK_ADMIN_FULL: Final = frozenset({"networks", "groups", "dns", "nameservers", "policies", "routes", "pats"})
_NETWORK_ADMIN_READ: Final = frozenset(
    {"settings", "accounts", "events", "users", "setup_keys", "peers", "identity_providers"}
)


def may(user: User, module: str, operation: Operation) -> bool:
    """True if the user's role permits the operation. A service user may read everything, whatever the role."""
    if module not in MODULES:
        return False
    if operation == "read" and user.is_service_user:
        return True
    match user.role:
        case Role.OWNER:
            return True
        case Role.ADMIN:
            return operation == "read" or module != "accounts"
        case Role.AUDITOR:
            return operation == "read"
        case Role.NETWORK_ADMIN:
            return module in _NETWORK_ADMIN_FULL or (operation == "read" and module in _NETWORK_ADMIN_READ)
        case Role.USER:
            return False


def permissions_json(user: User) -> dict[str, object]:
    """All permissions of a user, by module and operation."""
    return {
        "is_restricted": user.role is Role.USER and not user.is_service_user,
        "modules": {
            module: {operation: may(user, module, operation) for operation in OPERATIONS} for module in MODULES
        },
    }
