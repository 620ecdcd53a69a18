"""The OpenAPI document: what each operation takes and answers."""

import json
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from netbird_management.rest import (
    accounts,
    clusters,
    dns,
    groups,
    networks,
    peers,
    policies,
    proxy_tokens,
    service_json,
    setup,
    setup_keys,
    shapes,
    users,
)

Answer = type[BaseModel] | list[type[BaseModel]] | int | str
"""A shape, a list of one, a status without a body, or the media type of what is not JSON."""
_Entry = tuple[type[BaseModel] | None, Answer]
_SERVICES: Final = "/api/reverse-proxies/services"
_TOKENS: Final = "/api/users/{user_id}/tokens"
_RESOURCES: Final = "/api/networks/{network_id}/resources"
_ROUTERS: Final = "/api/networks/{network_id}/routers"
_RECORDS: Final = "/api/dns/zones/{zone_id}/records"

OPERATIONS: Final[dict[tuple[str, str], _Entry]] = {
    ("GET", "/api/instance"): (None, shapes.Instance),
    ("GET", "/api/reverse-proxy/callback"): (None, "text/plain"),
    ("POST", "/api/setup"): (setup.SetupRequest, shapes.SetUp),
    ("GET", "/api/users"): (None, [shapes.User]),
    ("POST", "/api/users"): (users.UserRequest, shapes.User),
    ("GET", "/api/users/current"): (None, shapes.CurrentUser),
    ("PUT", "/api/users/{user_id}"): (users.UserRequest, shapes.User),
    ("DELETE", "/api/users/{user_id}"): (None, shapes.Nothing),
    ("POST", "/api/users/{user_id}/approve"): (None, shapes.User),
    ("DELETE", "/api/users/{user_id}/reject"): (None, shapes.Nothing),
    ("GET", _TOKENS): (None, [shapes.PersonalToken]),
    ("POST", _TOKENS): (users.TokenRequest, shapes.NewPersonalToken),
    ("GET", _TOKENS + "/{token_id}"): (None, shapes.PersonalToken),
    ("DELETE", _TOKENS + "/{token_id}"): (None, shapes.Nothing),
    ("GET", "/api/accounts"): (None, [shapes.Account]),
    ("PUT", "/api/accounts/{account_id}"): (accounts.AccountBody, shapes.Account),
    ("DELETE", "/api/accounts/{account_id}"): (None, shapes.Nothing),
    ("GET", "/api/groups"): (None, [shapes.Group]),
    ("POST", "/api/groups"): (groups.GroupRequest, shapes.Group),
    ("GET", "/api/groups/{group_id}"): (None, shapes.Group),
    ("PUT", "/api/groups/{group_id}"): (groups.GroupRequest, shapes.Group),
    ("DELETE", "/api/groups/{group_id}"): (None, shapes.Nothing),
    ("GET", "/api/peers"): (None, [shapes.ListedPeer]),
    ("POST", "/api/peers"): (peers.PeerBody, shapes.NewPeer),
    ("GET", "/api/peers/{peer_id}"): (None, shapes.Peer),
    ("PUT", "/api/peers/{peer_id}"): (peers.PeerUpdate, shapes.Peer),
    ("DELETE", "/api/peers/{peer_id}"): (None, shapes.Nothing),
    ("GET", "/api/peers/{peer_id}/accessible-peers"): (None, [shapes.AccessiblePeer]),
    ("GET", "/api/peers/{peer_id}/wireguard"): (None, "text/plain"),
    ("GET", "/api/setup-keys"): (None, [shapes.SetupKey]),
    ("POST", "/api/setup-keys"): (setup_keys.NewSetupKey, shapes.SetupKey),
    ("GET", "/api/setup-keys/{key_id}"): (None, shapes.SetupKey),
    ("PUT", "/api/setup-keys/{key_id}"): (setup_keys.SetupKeyUpdate, shapes.SetupKey),
    ("DELETE", "/api/setup-keys/{key_id}"): (None, shapes.Nothing),
    ("GET", "/api/policies"): (None, [shapes.Policy]),
    ("POST", "/api/policies"): (policies.PolicyBody, shapes.Policy),
    ("GET", "/api/policies/{policy_id}"): (None, shapes.Policy),
    ("PUT", "/api/policies/{policy_id}"): (policies.PolicyBody, shapes.Policy),
    ("DELETE", "/api/policies/{policy_id}"): (None, shapes.Nothing),
    ("GET", "/api/networks"): (None, [shapes.Network]),
    ("POST", "/api/networks"): (networks.NetworkBody, shapes.Network),
    ("GET", "/api/networks/{network_id}"): (None, shapes.Network),
    ("PUT", "/api/networks/{network_id}"): (networks.NetworkBody, shapes.Network),
    ("DELETE", "/api/networks/{network_id}"): (None, shapes.Nothing),
    ("GET", _RESOURCES): (None, [shapes.NetworkResource]),
    ("POST", _RESOURCES): (networks.NetworkResourceBody, shapes.NetworkResource),
    ("GET", _RESOURCES + "/{resource_id}"): (None, shapes.NetworkResource),
    ("PUT", _RESOURCES + "/{resource_id}"): (networks.NetworkResourceBody, shapes.NetworkResource),
    ("DELETE", _RESOURCES + "/{resource_id}"): (None, shapes.Nothing),
    ("GET", _ROUTERS): (None, [shapes.NetworkRouter]),
    ("POST", _ROUTERS): (networks.NetworkRouterBody, shapes.NetworkRouter),
    ("GET", _ROUTERS + "/{router_id}"): (None, shapes.NetworkRouter),
    ("PUT", _ROUTERS + "/{router_id}"): (networks.NetworkRouterBody, shapes.NetworkRouter),
    ("DELETE", _ROUTERS + "/{router_id}"): (None, shapes.Nothing),
    ("GET", "/api/dns/settings"): (None, shapes.DnsSettings),
    ("PUT", "/api/dns/settings"): (dns.DnsSettingsBody, shapes.DnsSettings),
    ("GET", "/api/dns/nameservers"): (None, [shapes.NameserverGroup]),
    ("POST", "/api/dns/nameservers"): (dns.NameserverGroupBody, shapes.NameserverGroup),
    ("GET", "/api/dns/nameservers/{group_id}"): (None, shapes.NameserverGroup),
    ("PUT", "/api/dns/nameservers/{group_id}"): (dns.NameserverGroupBody, shapes.NameserverGroup),
    ("DELETE", "/api/dns/nameservers/{group_id}"): (None, shapes.Nothing),
    ("GET", "/api/dns/zones"): (None, [shapes.Zone]),
    ("POST", "/api/dns/zones"): (dns.ZoneBody, shapes.Zone),
    ("GET", "/api/dns/zones/{zone_id}"): (None, shapes.Zone),
    ("PUT", "/api/dns/zones/{zone_id}"): (dns.ZoneBody, shapes.Zone),
    ("DELETE", "/api/dns/zones/{zone_id}"): (None, shapes.Nothing),
    ("GET", _RECORDS): (None, [shapes.Record]),
    ("POST", _RECORDS): (dns.RecordBody, shapes.Record),
    ("GET", _RECORDS + "/{record_id}"): (None, shapes.Record),
    ("PUT", _RECORDS + "/{record_id}"): (dns.RecordBody, shapes.Record),
    ("DELETE", _RECORDS + "/{record_id}"): (None, shapes.Nothing),
    ("GET", _SERVICES): (None, [shapes.Service]),
    ("POST", _SERVICES): (service_json.ServiceBody, shapes.Service),
    ("GET", _SERVICES + "/{service_id}"): (None, shapes.Service),
    ("PUT", _SERVICES + "/{service_id}"): (service_json.ServiceBody, shapes.Service),
    ("DELETE", _SERVICES + "/{service_id}"): (None, shapes.Nothing),
    ("GET", _SERVICES + "/{service_id}/proxies"): (None, [shapes.ProxyStatus]),
    ("GET", "/api/reverse-proxies/clusters"): (None, [shapes.Cluster]),
    ("DELETE", "/api/reverse-proxies/clusters/{address}"): (None, shapes.Nothing),
    ("GET", "/api/reverse-proxies/domains"): (None, [shapes.Domain]),
    ("POST", "/api/reverse-proxies/domains"): (clusters.DomainBody, shapes.Domain),
    ("DELETE", "/api/reverse-proxies/domains/{domain_id}"): (None, 204),
    ("GET", "/api/reverse-proxies/domains/{domain_id}/validate"): (None, 202),
    ("GET", "/api/reverse-proxies/proxy-tokens"): (None, [shapes.ProxyToken]),
    ("POST", "/api/reverse-proxies/proxy-tokens"): (proxy_tokens.ProxyTokenBody, shapes.NewProxyToken),
    ("DELETE", "/api/reverse-proxies/proxy-tokens/{token_id}"): (None, shapes.Nothing),
    ("GET", "/api/events"): (None, [shapes.Event]),
    ("GET", "/api/events/audit"): (None, [shapes.Event]),
    ("GET", "/api/events/proxy"): (None, shapes.AccessLogPage),
}
OPEN: Final = frozenset({("GET", "/api/instance"), ("POST", "/api/setup"), ("GET", "/api/reverse-proxy/callback")})
"""What nobody needs a token for."""
_LOG_PARAMETERS: Final = {
    **dict.fromkeys(("page", "page_size", "status_code"), "integer"),
    **dict.fromkeys(
        (
            "sort_by",
            "sort_order",
            "search",
            "host",
            "user_id",
            "method",
            "source_ip",
            "path",
            "user_email",
            "user_name",
            "status",
            "start_date",
            "end_date",
        ),
        "string",
    ),
}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document. What a plugin's operation takes and answers is as FastAPI sees it."""
    described = get_openapi(
        title="netbird-management",
        version="1",
        openapi_version="3.1.0",
        routes=app.routes,
        description="Services, peers, groups and access of an account, in NetBird's public shapes.",
    )
    models: dict[type[BaseModel], None] = {shapes.Error: None}
    for (method, path), (body, answer) in OPERATIONS.items():
        operation = described["paths"][path][method.lower()]
        operation["tags"] = [path.split("/")[2]]
        operation.pop("requestBody", None)
        if body is not None:
            models[body] = None
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
        shape = answer[0] if isinstance(answer, list) else answer
        if isinstance(shape, type):
            models[shape] = None
        operation["responses"] = {**_answers(answer), "4XX": _json("Refused", _ref(shapes.Error))}
        if (method, path) not in OPEN:
            operation["security"] = [{"token": []}]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if (method.upper(), path) not in OPERATIONS:
                operation["responses"].pop("422", None)
                operation["responses"]["4XX"] = _json("Refused", _ref(shapes.Error))
                operation["security"] = [{"token": []}]
    # Browsers come here from the identity provider, and are sent on; or read a plain sentence why not.
    described["paths"]["/api/reverse-proxy/callback"]["get"]["responses"] = {
        "302": {"description": "Back to the service"},
        "4XX": {"description": "Refused"},
        "5XX": {"description": "The identity provider cannot be asked"},
    }
    described["paths"]["/api/events/proxy"]["get"]["parameters"] = [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in _LOG_PARAMETERS.items()
    ]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    known = {**described.get("components", {}).get("schemas", {}), **schemas["$defs"]}
    described["components"] = {
        "schemas": {name: known[name] for name in sorted(_needed(described["paths"], known))},
        "securitySchemes": {
            "token": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "`Token nbp_…`, a personal access token",
            }
        },
    }
    return described


def text(app: FastAPI) -> str:
    """As it is checked in."""
    return json.dumps(document(app), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _needed(within: object, known: dict[str, Any]) -> set[str]:
    """The names of all schemas that something in there leads to."""
    needed: set[str] = set()
    waiting = [within]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            name = str(one.get("$ref", "")).removeprefix("#/components/schemas/")
            if name in known and name not in needed:
                needed.add(name)
                waiting.append(known[name])
    return needed


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _answers(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, int):
        return {str(answer): {"description": "Done" if answer == 204 else "Begun"}}
    if isinstance(answer, str):
        return {"200": {"description": "Done", "content": {answer: {"schema": {"type": "string"}}}}}
    if isinstance(answer, list):
        return {"200": _json("Done", {"type": "array", "items": _ref(answer[0])})}
    return {"200": _json("Done", _ref(answer))}
