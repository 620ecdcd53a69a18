"""Plugins' session gates: a login gets a session only if every gate returns ALLOW."""

import asyncio
import logging
from typing import Final

from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import ALLOW, Decision, Deny, Login, Management

# Maximum time of all gates of a login; on expiry the denial `gate_failed`. It is half of the proxy's time limit for the
# call, so that a gate that hangs causes a denial and not a failed call.
GATE_SECONDS: Final = 1.0
GATE_FAILED: Final = Deny("gate_failed")
_log = logging.getLogger(__name__)


class SessionGates:
    """Calls the session gates of all plugins, in order, within one time limit."""

    def __init__(self, hooks: Hooks, management: Management, *, timeout: float = GATE_SECONDS) -> None:
        self._hooks = hooks
        self._management = management
        self._timeout = timeout

    async def judge(self, service: Service, account: AccountSnapshot, login: Login) -> Decision:
        """ALLOW, or the first denial; `gate_failed` if a gate raises, is late or returns another type."""
        at = "core"
        try:
            async with asyncio.timeout(self._timeout):
                for plugin, gate in self._hooks.session_gates(service, self._management):
                    at = plugin
                    decision = await gate(login=login, account=account)
                    if isinstance(decision, Deny):
                        return decision if decision.reason else Deny("denied")
                    if decision is not ALLOW:
                        raise TypeError(f"the gate returned {type(decision).__name__}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The gate raised the exception itself; this task was not cancelled.
            _log.exception("session_gate.failed", extra={"service_id": service.id, "plugin": at})
            return GATE_FAILED
        except Exception:
            # Any exception of a plugin denies the login.
            _log.exception("session_gate.failed", extra={"service_id": service.id, "plugin": at})
            return GATE_FAILED
        return ALLOW
