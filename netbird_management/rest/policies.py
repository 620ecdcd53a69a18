"""Policies of operators. The rules that private services add to network maps are not listed."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.accounts import Policy, PolicyRule, PortRange, Resource, ResourceType
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.ids import GroupId, PolicyId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.policies import create_policy, delete_policy, get_policy, update_policy
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import DESCRIPTION, Body, Only
from netbird_management.rest.context import InContext
from netbird_management.rest.groups import group_minimum
from netbird_management.rest.wire import ApiResponse, sent_as

router = APIRouter(prefix="/policies", tags=["policies"])


class ResourceBody(Body):
    id: str = ""
    type: str = ""


class PortRangeBody(Body):
    start: int = 0
    end: int = 0


class RuleBody(Body):
    answer = shapes.Rule
    id: str | None = None
    name: str = ""
    enabled: bool = False
    action: str = ""
    bidirectional: bool = False
    protocol: str = ""
    description: Annotated[str | None, DESCRIPTION] = None
    ports: list[str] | None = None
    port_ranges: list[PortRangeBody] | None = None
    sources: list[str] | None = None
    sourceResource: ResourceBody | None = None  # noqa: N815 - a member's name
    destinations: list[str] | None = None
    destinationResource: ResourceBody | None = None  # noqa: N815 - a member's name


class PolicyBody(Body):
    answer = shapes.Policy
    name: str = ""
    enabled: bool = False
    description: Annotated[str | None, DESCRIPTION] = None
    rules: list[RuleBody] | None = None
    source_posture_checks: Annotated[list[str] | None, Only([])] = None


@router.get("", response_model=list[shapes.Policy])
async def list_policies(caller: Annotated[AuthenticatedUser, allowed("policies", "read")]) -> Response:
    policies = sorted(caller.account.policies.values(), key=lambda policy: policy.id)
    return ApiResponse([policy_json(policy, caller.account) for policy in policies])


@router.post("", response_model=shapes.Policy)
async def post_policy(
    caller: Annotated[AuthenticatedUser, allowed("policies", "create")],
    context: InContext,
    body: Annotated[PolicyBody, sent_as(PolicyBody)],
) -> Response:
    policy = await create_policy(context.state, caller.account_id, _policy(PolicyId(""), body))
    return ApiResponse(policy_json(policy, context.account_of(caller)))


@router.get("/{policy_id}", response_model=shapes.Policy)
async def get_one(
    policy_id: str, caller: Annotated[AuthenticatedUser, allowed("policies", "read")], context: InContext
) -> Response:
    policy = get_policy(context.state, caller.account_id, PolicyId(policy_id))
    return ApiResponse(policy_json(policy, caller.account))


@router.put("/{policy_id}", response_model=shapes.Policy)
async def put_policy(
    policy_id: str,
    caller: Annotated[AuthenticatedUser, allowed("policies", "update")],
    context: InContext,
    body: Annotated[PolicyBody, sent_as(PolicyBody)],
) -> Response:
    policy = await update_policy(context.state, caller.account_id, _policy(PolicyId(policy_id), body))
    return ApiResponse(policy_json(policy, context.account_of(caller)))


@router.delete("/{policy_id}", response_model=shapes.Nothing)
async def remove_policy(
    policy_id: str, caller: Annotated[AuthenticatedUser, allowed("policies", "delete")], context: InContext
) -> Response:
    await delete_policy(context.state, caller.account_id, PolicyId(policy_id))
    return ApiResponse({})


def policy_json(policy: Policy, account: AccountSnapshot) -> dict[str, Any]:
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
            answer[name] = [group_minimum(account.groups[id_], account) for id_ in ids if id_ in account.groups]
    for name, resource in (
        ("sourceResource", rule.source_resource),
        ("destinationResource", rule.destination_resource),
    ):
        if resource is not None:
            answer[name] = {"id": resource.id, "type": resource.type.value}
    if rule.ports:
        answer["ports"] = [str(port) for port in rule.ports]
    if rule.port_ranges:
        answer["port_ranges"] = [{"start": ports.start, "end": ports.end} for ports in rule.port_ranges]
    return answer


def _policy(policy_id: PolicyId, body: PolicyBody) -> Policy:
    return Policy(
        id=policy_id,
        name=body.name,
        enabled=body.enabled,
        description=body.description or "",
        rules=tuple(_rule(i, rule) for i, rule in enumerate(body.rules or ())),
    )


def _rule(i: int, body: RuleBody) -> PolicyRule:
    return PolicyRule(
        id=body.id or "",
        name=body.name,
        enabled=body.enabled,
        sources=tuple(GroupId(id_) for id_ in body.sources or ()),
        source_resource=_resource(i, body.sourceResource),
        destinations=tuple(GroupId(id_) for id_ in body.destinations or ()),
        destination_resource=_resource(i, body.destinationResource),
        bidirectional=body.bidirectional,
        protocol=body.protocol,
        action=body.action,
        ports=tuple(_port(i, port) for port in body.ports or ()),
        port_ranges=tuple(PortRange(ports.start, ports.end) for ports in body.port_ranges or ()),
        description=body.description or "",
    )


def _resource(i: int, body: ResourceBody | None) -> Resource | None:
    if body is None or not (body.id or body.type):
        return None
    if not body.id:
        raise InvalidArgument(f"rules[{i}]: id of the resource of type {body.type} is required")
    try:
        return Resource(body.id, ResourceType(body.type))
    except ValueError as error:
        raise InvalidArgument(f'rules[{i}]: unknown resource type "{body.type}"') from error


def _port(i: int, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or text != str(int(text)):
        raise InvalidArgument(f'rules[{i}]: ports must be numbers from 1 to 65535, not "{text}"')
    return int(text)
