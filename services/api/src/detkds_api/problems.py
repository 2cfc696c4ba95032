"""What went wrong, as RFC 9457 problem details: one exception class a problem, which knows its status.

Every answer that is not a success is `application/problem+json` with `type, title, status, detail, instance, request_id` and, where
fields are to blame, `errors[]` of `{pointer, message}`: where (a JSON pointer into the body, or `?name` for a query parameter) and what
would be right. No stack trace leaves the service; the log has it under the same request id.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from detkds_core.store import UNREACHABLE

RETRY_SECONDS = 5  # after which a database that restarts may be there again
MOST_ERRORS = 200  # fields that one answer names: a body of 1 MiB can have 60,000 wrong ones, and their answer would be 18 MiB
FIELDS_TOLD = 4  # of an object, where something else stands
log = logging.getLogger(__name__)


class FieldError(NamedTuple):
    """What is wrong with one field. pointer: RFC 6901 into the body (`/teacher/detector`), or `?name` for a query parameter."""

    pointer: str
    message: str


class Problem(Exception):
    """An answer with an error status. Subclasses give status, slug and title; the instance says what happened."""

    status = 500
    slug = "internal"
    title = "The service failed"

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class BadRequest(Problem):
    status, slug, title = 400, "bad-request", "The request cannot be read"


class KeyMissing(Problem):
    status, slug, title = 401, "key-missing", "An API key is needed"


class Forbidden(Problem):
    status, slug, title = 403, "forbidden", "Not allowed from there"


class NotFound(Problem):
    status, slug, title = 404, "not-found", "There is no such thing"


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "This address does not do that"


class BodyTimeout(Problem):
    status, slug, title = 408, "body-timeout", "The body did not arrive"


class Conflict(Problem):
    status, slug, title = 409, "conflict", "Not possible in this state"


class BodyTooLarge(Problem):
    status, slug, title = 413, "body-too-large", "The body is too large"


class NotJson(Problem):
    status, slug, title = 415, "not-json", "The body is of another kind"


class BadRange(Problem):
    status, slug, title = 416, "bad-range", "The file has no such bytes"


class InvalidInput(Problem):
    status, slug, title = 422, "invalid-input", "The request asks for something that is not possible"


class KeyReused(Problem):
    status, slug, title = 422, "idempotency-key-reused", "This Idempotency-Key was used for another request"


class TooMany(Problem):
    status, slug, title = 429, "too-many", "More than this key may ask for"


class NoRoom(Problem):
    status, slug, title = 507, "no-room", "The disk is nearly full"


class Damaged(Problem):
    status, slug, title = 500, "artifact-damaged", "A stored file is lost or has changed"


class Unavailable(Problem):
    status, slug, title = 503, "unavailable", "Not available now"


def database_away() -> Unavailable:
    return Unavailable("the database does not answer; ask again in a moment", headers={"Retry-After": str(RETRY_SECONDS)})


def invalid(errors: Iterable[FieldError]) -> InvalidInput:
    """One problem for one or several fields, whose detail already reads as a sentence for people without a JSON viewer."""
    found = tuple(errors)
    detail = "; ".join(f"{dotted(error.pointer)}: {error.message}" for error in found[:5])
    if len(found) > 5:
        detail += f"; and {len(found) - 5} more"
    return InvalidInput(detail, found[:MOST_ERRORS])


def dotted(pointer: str) -> str:
    """`/policy/terms/1/weight` as people write it: `policy.terms[1].weight`. `?limit` stays."""
    if not pointer.startswith("/"):
        return pointer or "body"
    text = ""
    for part in pointer[1:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        text += f"[{part}]" if part.isdigit() else f".{part}"
    return text.lstrip(".")


def pointer(*parts: str | int) -> str:
    """JSON pointer of a path: `pointer("policy", "terms", 1)` is `/policy/terms/1`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def pointer_of_path(path: str) -> str:
    """JSON pointer of a dotted path: `policy.terms[1].transforms[2]` is `/policy/terms/1/transforms/2`."""
    return pointer(*(part for part in re.split(r"[.\[\]]+", path) if part))


class FieldErrorView(BaseModel):
    """What is wrong with one field, and what would be right. pointer: into the body, or `?name` for a query parameter."""

    pointer: str
    message: str


class ProblemView(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldErrorView] = []


def answers(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The answers of an OpenAPI operation that are problems, by status."""
    titles: dict[int, list[str]] = {}
    for kind in kinds:
        titles.setdefault(kind.status, []).append(kind.title)
    content = {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{ProblemView.__name__}"}}}
    return {status: {"description": "; ".join(found), "content": content} for status, found in titles.items()}


def answer(problem: Problem, *, instance: str, request_id: str) -> Response:
    """The HTTP answer of a problem."""
    body: dict[str, Any] = {
        "type": f"urn:detkds:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = [error._asdict() for error in problem.errors]
    # ASCII only: the detail may quote what the client sent, lone surrogates included, which UTF-8 cannot carry.
    return Response(
        json.dumps(body).encode("ascii"),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"X-Request-ID": request_id, "Cache-Control": "no-store", **problem.headers},
    )


HTTP_PROBLEMS: Mapping[int, type[Problem]] = {
    problem.status: problem for problem in (BadRequest, NotFound, MethodNotAllowed, BodyTooLarge, NotJson, Unavailable)
}


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    def respond(request: Request, problem: Problem) -> Response:
        return answer(problem, instance=request.url.path, request_id=getattr(request.state, "request_id", "-"))

    @app.exception_handler(Problem)
    async def problem_handler(request: Request, error: Problem) -> Response:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def validation_handler(request: Request, error: RequestValidationError) -> Response:
        return respond(request, from_validation(error, body_model(request), query_model(request)))

    @app.exception_handler(HTTPException)
    async def http_handler(request: Request, error: HTTPException) -> Response:
        kind = HTTP_PROBLEMS.get(error.status_code, BadRequest if error.status_code < 500 else Problem)
        details = {
            404: f"there is nothing at {request.url.path}; GET /docs shows what there is",
            405: f"{request.url.path} does not answer {request.method}",
            400: "the body is not JSON that can be read",
        }
        headers = allowed(request) if error.status_code == 405 else error.headers
        return respond(request, kind(details.get(error.status_code, str(error.detail)), headers=headers))

    async def unreachable_handler(request: Request, error: DBAPIError) -> Response:
        request_id = getattr(request.state, "request_id", "-")
        log.warning("the database cannot be reached", extra={"request_id": request_id, "reason": str(error.orig).partition("\n")[0]})
        return respond(request, database_away())

    for kind in UNREACHABLE:
        app.add_exception_handler(kind, unreachable_handler)  # type: ignore[arg-type]

    @app.exception_handler(Exception)
    async def bug_handler(request: Request, error: Exception) -> Response:
        request_id = getattr(request.state, "request_id", "-")
        log.error("a request failed", exc_info=error, extra={"request_id": request_id})
        return respond(request, Problem(f"the service failed on this request; its log has the reason under {request_id}"))


def allowed(request: Request) -> dict[str, str]:
    """The `Allow` of a 405, all methods of the address: each is a route of its own, and Starlette tells the first one's."""
    path = getattr(request.scope.get("route"), "path_format", None)
    methods = request.app.openapi()["paths"].get(path, {"get": {}})  # what is no part of the API is a page
    return {"Allow": ", ".join(method.upper() for method in methods)}


def body_model(request: Request) -> type[BaseModel] | None:
    """The pydantic model of the matched route's body, if it has one."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return model_in(getattr(getattr(field, "field_info", None), "annotation", None))


def query_model(request: Request) -> type[BaseModel] | None:
    """The pydantic model of the matched route's query parameters, if they have one."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    fields: Sequence[Any] = getattr(dependant, "query_params", ())
    return model_in(fields[0].field_info.annotation) if len(fields) == 1 else None


def like(path: Sequence[str | int], model: type[BaseModel] | None) -> str:
    """`: {"detector": ..., "checkpoint": ...}`, what an object of that place looks like; nothing where several kinds may stand."""
    for part in path:
        field = model.model_fields.get(part) if model is not None and isinstance(part, str) else None
        model = model_in(field.annotation) if field else None
        if field and len(models_in(field.annotation)) > 1:
            return ""
    if model is None:
        return ""
    fields = [f'"{name}": ...' for name in list(model.model_fields)[:FIELDS_TOLD]]
    return f": {{{', '.join(fields)}{', ...' if len(model.model_fields) > FIELDS_TOLD else ''}}}"


def model_in(annotation: object) -> type[BaseModel] | None:
    """The model inside an annotation such as `Recipe | None` or `list[Recipe]`, the first if there are several."""
    return next(iter(models_in(annotation)), None)


def models_in(annotation: object) -> list[type[BaseModel]]:
    """All models inside an annotation, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in models_in(inner)]


def from_validation(error: RequestValidationError, body: type[BaseModel] | None, query: type[BaseModel] | None = None) -> Problem:
    """pydantic's errors in the words of this API: where, what was wrong, what would be right."""
    found: dict[str, list[str]] = {}
    for entry in error.errors():
        place, *path = entry["loc"]
        if entry["type"] == "json_invalid":
            return BadRequest(f"the body is not JSON: {entry['ctx']['error']} at character {path[0] if path else 0}")
        if place == "body":
            path = places(path, error.body)
        where = pointer(*path) if place == "body" else f"?{path[0]}" if place == "query" else f"header {path[0]}" if path else str(place)
        if where in found or len(found) < MOST_ERRORS:
            found.setdefault(where, []).append(words(entry, path, query if place == "query" else body))
        else:
            found[where] = []  # is counted
    return invalid(FieldError(where, ", or ".join(messages)) for where, messages in found.items())


def places(path: Sequence[str | int], body: object) -> list[str | int]:
    """The part of pydantic's path that leads through the body: behind it come the names of a union's alternatives."""
    kept: list[str | int] = []
    for part in path:
        if isinstance(body, Mapping) and (part in body or part == path[-1]):
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        else:
            break
        kept.append(part)
    return kept


def words(entry: Mapping[str, Any], path: Sequence[str | int], model: type[BaseModel] | None) -> str:
    """One pydantic error as `what was wrong; what would be right`."""
    if entry["type"] == "extra_forbidden":
        for part in path[:-1]:
            if model is not None and isinstance(part, str):
                field = model.model_fields.get(part)
                model = model_in(field.annotation) if field else None
        known = ", ".join(model.model_fields) if model is not None else ""
        kind = "parameter" if entry["loc"][0] == "query" else "field"
        return f"there is no {kind} {path[-1]!r}" + (f"; one of {known}" if known else "")
    if entry["type"] == "missing":
        return "is required"
    message = str(entry["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if entry["type"] in ("model_attributes_type", "model_type"):
        message = f"should be an object{like(path, model)}"
    given = entry.get("input")
    if isinstance(given, str | int | float | bool) and len(shown := repr(given)) <= 80 and shown not in message:
        return f"{shown} {message}" if message.startswith("should") else f"{message} (got {shown})"
    return message
