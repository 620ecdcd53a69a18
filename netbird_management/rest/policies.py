"""Policies, to look at. What services add to the network by themselves is not listed."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.network.model import Policy, PolicyRule
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.rest.auth import AdminCaller
from netbird_management.rest.groups import group_minimum
from netbird_management.rest.json import ApiResponse

router = APIRouter()


@router.get("/policies")
async def list_policies(who: AdminCaller) -> Response:
    policies = sorted(who.account.policies.values(), key=lambda policy: policy.id)
    return ApiResponse([_policy_json(policy, who.account) for policy in policies])


def _policy_json(policy: Policy, account: AccountSnapshot) -> dict[str, Any]:
    return {
        "description": policy.description,
        "enabled": policy.enabled,
        "id": policy.id,
        "name": policy.name,
        "rules": [_rule_json(rule, account) for rule in policy.rules],
        "source_posture_checks": None,
    }


def _rule_json(rule: PolicyRule, account: AccountSnapshot) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "action": rule.action,
        "bidirectional": rule.bidirectional,
        "description": rule.description,
        "enabled": rule.enabled,
        "id": rule.id,
        "name": rule.name,
        "protocol": rule.protocol,
    }
    for name, ids in (("sources", rule.sources), ("destinations", rule.destinations)):
        if ids:
            answer[name] = [group_minimum(account.groups[id_]) for id_ in ids if id_ in account.groups]
    if rule.ports:
        answer["ports"] = [str(port) for port in rule.ports]
    if rule.port_ranges:
        answer["port_ranges"] = [{"start": ports.start, "end": ports.end} for ports in rule.port_ranges]
    return answer
