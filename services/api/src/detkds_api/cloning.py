"""The same request again: what `clone` makes of the request of a search or a distillation and the changes to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from detkds_api.fields import Body
from detkds_api.problems import Conflict, FieldError, invalid, pointer
from detkds_core.store.models import Distillation, Search

Request = TypeVar("Request", bound=Body)
Row = TypeVar("Row", Search, Distillation)

MERGED = ("recipe", "confirmation")  # changed field by field; every other change stands in place of what was there
INSTEAD: Mapping[str, tuple[str, ...]] = {  # a change of the one takes the others away, which say the same in another way
    "pair": ("dataset", "teacher", "student"),
    "iterations": ("hours", "wall_clock_hours"),
    "hours": ("iterations", "wall_clock_hours"),
    "wall_clock_hours": ("iterations", "hours"),
}


def cloned(source: Search | Distillation, changes: Body, model: type[Request], again: str) -> Request:
    """The request of `source` with the changes over it. again: the address that takes a new one.

    Raises Conflict for what is from before requests were kept, InvalidInput.
    """
    if source.request is None:
        raise Conflict(f"{source.id} is from before requests were kept, so that none can be repeated. Start it anew with POST {again}")
    asked = changes.model_dump(mode="json", exclude_unset=True)
    dropped = {other for name in asked if asked[name] is not None for other in INSTEAD.get(name, ())}
    kept: dict[str, Any] = {name: value for name, value in source.request.items() if name not in dropped}
    for name, value in asked.items():
        before = kept.get(name)
        kept[name] = {**before, **value} if name in MERGED and isinstance(before, dict) and isinstance(value, dict) else value
    try:
        return model.model_validate(kept)
    except ValidationError as error:  # an earlier version took what this one does not
        raise invalid(
            FieldError(pointer(*one["loc"]), f"of the request that is repeated: {one['msg']}") for one in error.errors()
        ) from None


def repeats(found: Search | Distillation, request: Mapping[str, Any], cloned_from: str | None, spec: Mapping[str, Any]) -> bool:
    """Whether what was made with an Idempotency-Key came from the same request; one from before requests were kept: does the same.

    Not by what it is called, which may have changed since.
    """
    same = found.request == request if found.request is not None else does_the_same(found.spec, spec)
    return same and found.cloned_from == cloned_from


def answered(found: Row | None, request: Mapping[str, Any], cloned_from: str | None) -> Row | None:
    """What was made with an Idempotency-Key, if the same request did: its answer needs nothing that may be gone by now, such as the workers
    that told what an hour buys."""
    same = found is not None and found.request is not None and (found.request, found.cloned_from) == (request, cloned_from)
    return found if same else None


def does_the_same(before: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Whether a specification of any version is what a request comes to now, as far as the request decides it.

    What hours buy depends on what is known when it comes. Of a recipe from before it was said where it is from, the fields that the request
    gives have to be the same: what it leaves out had other defaults. A search that has other rungs by those is not known again.
    """
    given = spec["recipe"].keys() if "recipe_from" in before else spec["recipe_from"]["given"]

    def asked_for(one: Mapping[str, Any]) -> dict[str, Any]:
        told = ("recipe_from", "warnings", *(("budget",) if "asked" in one else ()))
        train = {name: value for name, value in one["dataset"]["train"].items() if name != "sides"}  # earlier versions did not measure them
        return {
            **{name: value for name, value in one.items() if name not in told},
            "recipe": {name: one["recipe"].get(name) for name in given},
            "dataset": {**one["dataset"], "train": train},
        }

    return asked_for(before) == asked_for(spec)


def kept_request(wanted: Body) -> dict[str, Any]:
    """A request as it is kept: what it said, and nothing of what it left to the service."""
    return wanted.model_dump(mode="json", exclude_unset=True)
