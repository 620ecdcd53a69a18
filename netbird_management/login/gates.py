"""What plugins say of somebody who may have a session: nothing but ALLOW from each of them makes one."""

import asyncio
import logging
from typing import Final

from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import ALLOW, Decision, Deny, Login, Management

GATE_SECONDS: Final = 1.0
"""Half of what a proxy gives the call, so that a gate that hangs is a named refusal and not a failed call."""
GATE_FAILED: Final = Deny("gate_failed")
_log = logging.getLogger(__name__)


class SessionGates:
    """Asks them all, for as long as a login can wait."""

    def __init__(self, hooks: Hooks, management: Management, *, timeout: float = GATE_SECONDS) -> None:
        self._hooks = hooks
        self._management = management
        self._timeout = timeout

    async def judge(self, service: Service, account: AccountSnapshot, login: Login) -> Decision:
        """ALLOW, or the first denial; `gate_failed` where a plugin raised, was late or returned anything else."""
        at = "core"
        try:
            async with asyncio.timeout(self._timeout):
                for plugin, gate in self._hooks.session_gates(service, self._management):
                    at = plugin
                    decision = await gate(login=login, account=account)
                    if isinstance(decision, Deny):
                        return decision if decision.reason else Deny("denied")
                    if decision is not ALLOW:
                        raise TypeError(f"answered {type(decision).__name__}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The gate raised it by itself: nothing cancelled this task.
            _log.exception("session_gate.failed", extra={"service_id": service.id, "plugin": at})
            return GATE_FAILED
        except Exception:
            # A plugin's code: whatever it raises, nobody comes in.
            _log.exception("session_gate.failed", extra={"service_id": service.id, "plugin": at})
            return GATE_FAILED
        return ALLOW
