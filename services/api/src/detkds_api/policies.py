"""`GET /policies`, and how a request names a policy: by name, by formula, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from detkds_api.pairing import Pairing
from detkds_api.problems import FieldError, invalid, pointer_of_path
from detkds_core.catalogue import DETECTORS, PAIRS, exchange, pair_facts
from detkds_core.names import meant
from detkds_core.policy import (
    Policy,
    PolicyError,
    canonical,
    from_json,
    json_schema,
    named_policies,
    parse_formula,
    to_json,
)
from detkds_core.policy.distillers import DISTILLERS
from detkds_core.policy.named import NamedPolicy, cannot_run

router = APIRouter(tags=["policies"])

CLASSES = {"digits": 10, "trees": 1, "coco": 80}  # of the datasets that the catalogue's pairs name
FORMULA_LIMIT = 4000  # characters; 20 terms with all their options are below 2,000


class PolicyView(BaseModel):
    """A policy that a request may call by its name.

    expected_use: what it was designed for; pair, schedule: what a released policy was released for; pairs: those of the catalogue that
    can be trained with it, under their full recipe.
    """

    name: str
    formula: str
    policy: dict[str, Any]
    source: str
    note: str
    expected_use: str
    pair: str
    schedule: str
    pairs: list[str]


class Policies(BaseModel):
    """The named policies, and the JSON schema of those that requests write themselves."""

    items: list[PolicyView]
    policy_schema: dict[str, Any]


EXAMPLE = {
    "items": [
        {
            "name": "pkd",
            "formula": "5·l2(standardize(global))",
            "policy": {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]},
            "source": "PKD (Cao et al., NeurIPS 2022)",
            "note": "Published weight 10 times its factor of 1/2.",
            "expected_use": "One-stage detectors, also of different families and backbones.",
            "pair": "",
            "schedule": "",
            "pairs": ["digits_gfl"],
        }
    ],
    "policy_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
}


@router.get("/policies", responses={200: {"content": {"application/json": {"example": EXAMPLE}}}})
def list_policies() -> Policies:
    """No distillation, hand-designed distillers and published searches, each as formula and JSON."""
    return Policies(items=[policy_view(one) for one in named_policies().values()], policy_schema=json_schema())


@cache
def policy_view(one: NamedPolicy) -> PolicyView:
    return PolicyView(
        name=one.name,
        formula=one.formula,
        policy=to_json(one.policy),
        source=one.source,
        note=one.note,
        expected_use=one.expected_use,
        pair=one.pair,
        schedule=one.schedule,
        pairs=[name for name in PAIRS if runs_on(one.policy, name)],
    )


def runs_on(policy: Policy, pair_name: str) -> bool:
    """Whether a pair of the catalogue can be trained with a policy under its full recipe."""
    pair = PAIRS[pair_name]
    teacher, student = DETECTORS[pair.teacher], DETECTORS[pair.student]
    offer = exchange(teacher, student)
    facts = pair_facts(offer, student, CLASSES[pair.dataset], max(1, pair.full.batch // pair.full.devices))
    return not cannot_run(policy, offer, facts, (teacher.family, student.family))


def read_policy(value: str | Mapping[str, Any], where: str, pairing: Pairing) -> Policy:
    """The canonical policy of a name, a formula or JSON, once it is sure that this pair can be trained under it.

    where: its JSON pointer in the request. Raises InvalidInput with a pointer to every illegal place of JSON, or to `where` for text.
    """
    written = isinstance(value, Mapping)
    policy = policy_of_json(value, where) if isinstance(value, Mapping) else policy_of_text(value, where)
    errors = [
        FieldError(where + pointer_of_path(path.removeprefix("policy")), why) if written else FieldError(where, placed(path, why))
        for path, why in pairing.cannot_run(policy)
    ]
    if errors:
        raise invalid(errors)
    return canonical(policy)


def policy_of_text(text: str, where: str) -> Policy:
    """The policy of a name or a formula. Raises InvalidInput."""
    named = named_policies()
    if text in named:
        return named[text].policy
    if text.isidentifier() and text not in DISTILLERS:
        raise invalid([FieldError(where, f"{text!r} is not a named policy, a formula or JSON; {meant(text, named)}")])
    if len(text) > FORMULA_LIMIT:
        raise invalid([FieldError(where, f"a formula of {len(text)} characters; at most {FORMULA_LIMIT}")])
    try:
        return parse_formula(text)
    except PolicyError as error:
        raise invalid([FieldError(where, placed(path, message)) for path, message in error.errors]) from None


def placed(path: str, message: str) -> str:
    """What is wrong with a formula, behind its place in it: `terms[1].region: ...`."""
    place = path.removeprefix("policy").removeprefix(".")
    return f"{place}: {message}" if place else message


def policy_of_json(value: Mapping[str, Any], where: str) -> Policy:
    """The policy of JSON. Raises InvalidInput."""
    try:
        return from_json(value)
    except PolicyError as error:
        # The policy language's own path: `policy.terms[1].weight` is `/terms/1/weight` below where the policy stands.
        found = [FieldError(where + pointer_of_path(path.removeprefix("policy")), message) for path, message in error.errors]
        raise invalid(found) from None
