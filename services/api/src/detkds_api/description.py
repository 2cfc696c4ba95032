"""The OpenAPI document in full: what FastAPI does not know of the gate, of problems and of headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from detkds_api import problems
from detkds_api.gate import OPEN_PATHS, SAFE_METHODS
from detkds_api.problems import Problem, ProblemView, answers

REQUEST_ID = {
    "description": "The client's own, or one that was made; the service's log has it.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{8,64}$"},
}
LOCATION = {
    "description": "Where to look at it.",
    "required": True,
    "schema": {"type": "string", "pattern": "^/((searches|distill)/[0-9a-f-]{36}|datasets/[a-z0-9][a-z0-9._-]*)$"},
}


def complete(document: dict[str, Any], routers: Iterable[APIRouter], *, keys: bool) -> None:
    """Add to FastAPI's document what it leaves out. keys: whether the service asks for a key."""
    keep_nulls(document, routers)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            told = operation["responses"]
            if "HTTPValidationError" in str(told.get("422")):
                del told["422"]
            refused = answers(*refusals(path, method.upper(), operation, keys=keys))
            for status, answer in refused.items():
                told.setdefault(str(status), answer)
            for status, answer in told.items():
                located = {"Location": {"$ref": "#/components/headers/Location"}} if status == "202" else {}
                answer["headers"] = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}, **located, **answer.get("headers", {})}
            if keys and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
    components = document["components"]
    components["schemas"] = {name: one for name, one in components["schemas"].items() if not name.endswith("ValidationError")}
    view = ProblemView.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= {**view.pop("$defs"), ProblemView.__name__: view}
    components["headers"] = {"X-Request-ID": REQUEST_ID, "Location": LOCATION}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "A key of `POST /keys`."}}


def refusals(path: str, method: str, operation: dict[str, Any], *, keys: bool) -> Iterator[type[Problem]]:
    """What any operation of this shape may be refused with, before its own reasons."""
    yield problems.Forbidden
    if keys and path not in OPEN_PATHS:
        yield from (problems.KeyMissing, problems.TooMany)
    if method not in SAFE_METHODS:
        yield from (problems.BodyTimeout, problems.BodyTooLarge, problems.NotJson)
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        yield problems.BadRequest
    if re.search(r"\{\w+_id\}", path):
        yield problems.NotFound
    bounded = [one for one in operation.get("parameters", ()) if one["schema"].keys() - {"type", "title", "description", "examples"}]
    if bounded or "requestBody" in operation:
        yield problems.InvalidInput


def keep_nulls(document: dict[str, Any], routers: Iterable[APIRouter]) -> None:
    """Put the examples back as they were written: FastAPI drops whatever is null in them."""
    for router in routers:
        for route in router.routes:
            if not isinstance(route, APIRoute):
                continue
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                for status, answer in route.responses.items():
                    for media, content in answer.get("content", {}).items():
                        operation["responses"][str(status)]["content"][media].update(content)
