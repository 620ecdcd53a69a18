"""The OpenAPI document. Each route declares its request body and its response."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from netbird_management.rest.wire import BodyReader

PREFIX: Final = "/api"
_REF: Final = "#/components/schemas/{model}"


def document(app: FastAPI, own: Iterable[APIRouter]) -> dict[str, Any]:
    """FastAPI's description of the routes, with the bodies of `own`, whose routes parse requests without FastAPI."""
    described = get_openapi(
        title="netbird-management",
        version="1",
        openapi_version="3.1.0",
        routes=app.routes,
        description="Services, peers, groups and access of an account, in NetBird's public shapes.",
    )
    models: set[type[BaseModel]] = set()
    for route in (route for router in own for route in router.routes if isinstance(route, APIRoute)):
        for model in _bodies(route):
            models.add(model)
            schema = {"$ref": _REF.format(model=model.__name__)}
            for method in route.methods or ():
                operation = described["paths"][PREFIX + route.path_format][method.lower()]
                operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    described["components"]["schemas"] |= schemas["$defs"]
    return described


def text(described: dict[str, Any]) -> str:
    """The document as JSON, in the form of `docs/openapi.json`."""
    return json.dumps(described, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _bodies(route: APIRoute) -> Iterator[type[BaseModel]]:
    for needed in route.dependant.dependencies:
        if isinstance(needed.call, BodyReader):
            yield needed.call.model
