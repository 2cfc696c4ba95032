"""`GET /policies`, and how a request names a policy: by name, by formula, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from detkds_api.problems import FieldError, invalid, pointer, pointer_of_path
from detkds_core.catalogue import Exchange
from detkds_core.policy import (
    Policy,
    PolicyError,
    SearchSpace,
    canonical,
    check,
    formula,
    from_json,
    json_schema,
    named_policies,
    parse_formula,
    to_json,
)

router = APIRouter(tags=["policies"])

FORMULA_LIMIT = 4000  # characters; 20 terms with all their options are below 2,000


class PolicyView(BaseModel):
    """A policy that a request may call by its name."""

    name: str
    formula: str
    policy: dict[str, Any]
    source: str
    note: str


class Policies(BaseModel):
    """The named policies, and the JSON schema of those that requests write themselves."""

    items: list[PolicyView]
    policy_schema: dict[str, Any]


EXAMPLE = {
    "items": [
        {
            "name": "pkd",
            "formula": "0.5·l2(standardize(global))",
            "policy": {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 0.5}]},
            "source": "PKD",
            "note": "Pearson correlation of feature maps",
        }
    ],
    "policy_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
}


@router.get("/policies", responses={200: {"content": {"application/json": {"example": EXAMPLE}}}})
def list_policies() -> Policies:
    """No distillation, hand-designed distillers and published searches, each as formula and JSON."""
    items = [
        PolicyView(name=name, formula=formula(one.policy), policy=to_json(one.policy), source=one.source, note=one.note)
        for name, one in named_policies().items()
    ]
    return Policies(items=items, policy_schema=json_schema())


def read_policy(value: str | Mapping[str, Any], where: str) -> Policy:
    """The canonical policy of a name, a formula or JSON. where: its JSON pointer in the request, for the errors.

    Raises InvalidInput with a pointer to every illegal place of JSON, or to `where` for text.
    """
    if isinstance(value, str):
        named = named_policies()
        if value in named:
            return canonical(named[value].policy)
        if value.isidentifier():
            raise invalid([FieldError(where, f"{value!r} is not a named policy; one of {', '.join(named)}; or a formula, or JSON")])
        if len(value) > FORMULA_LIMIT:
            raise invalid([FieldError(where, f"a formula of {len(value)} characters; at most {FORMULA_LIMIT}")])
        try:
            policy = parse_formula(value)
            check(policy)
        except PolicyError as error:
            raise invalid([FieldError(where, f"{path}: {message}" if path else message) for path, message in error.errors]) from None
        return canonical(policy)
    try:
        policy = from_json(value)
        check(policy)
    except PolicyError as error:
        raise invalid([FieldError(where + within(path), message) for path, message in error.errors]) from None
    return canonical(policy)


def within(path: str) -> str:
    """Pointer below a policy of the policy language's own path: `policy.terms[1].weight` is `/terms/1/weight`."""
    return pointer_of_path(path.removeprefix("policy"))


def check_exchange(policy: Policy, common: Exchange, batch: int, where: str) -> None:
    """Raise InvalidInput for terms that this teacher and student cannot exchange. batch: images a training step sees."""
    errors: list[FieldError] = []
    for place, term in enumerate(policy.terms):
        here = where + pointer("terms", place)
        if term.knowledge in common.excluded:
            errors.append(
                FieldError(here + "/knowledge", f"this pair cannot exchange {term.knowledge!r}: {common.excluded[term.knowledge]}")
            )
            continue
        space = SearchSpace(knowledge=common.knowledge, images_per_batch=batch, has_edges=common.has_edges)
        errors += [FieldError(here, f"not for this pair: {reason}") for reason in reasons(space, term)]
    if errors:
        raise invalid(errors)
