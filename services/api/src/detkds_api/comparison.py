"""`GET /results/compare`: several results side by side, those of the same images only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from detkds_api.fields import Asked
from detkds_api.problems import FieldError, NotFound, answers, invalid
from detkds_api.service import Service, example
from detkds_core.policy import formula, from_json
from detkds_core.store import results as stored
from detkds_core.store.ids import is_id
from detkds_core.store.models import Result
from detkds_core.store.vocabulary import ResultKind as Kind

router = APIRouter(tags=["results"])

FEWEST, MOST = 2, 20  # results of a comparison
SHORT = 12  # characters of a digest that tell it apart


class CompareQuery(Asked):
    """Which results to compare."""

    ids: str = Field(
        min_length=1,
        max_length=1000,
        description=f"Ids of {FEWEST} to {MOST} results, with commas between.",
        json_schema_extra={"pattern": f"^[0-9a-f-]{{36}}(,[0-9a-f-]{{36}}){{{FEWEST - 1},{MOST - 1}}}$"},
        examples=["0198a3e0-55aa-7b11-8d2f-0c6c2c7e9f10,0198a3e4-11b2-7c09-9e1c-52f5a9c01b7d"],
    )


class Cost(BaseModel):
    """What a result took, all its trainings together; null where that is not known.

    trunk_seconds, trunk_iterations: of these, on the trainings without distillation that the candidates of a search fork from.
    """

    seconds: float | None
    iterations: int | None
    trunk_seconds: float | None
    trunk_iterations: int | None


class Compared(BaseModel):
    """A result in a comparison.

    ap: percent; interval: that of its mean over seeds and images (95 %), null for one seed. seeds, images: what the AP rests on. versions:
    of the program and its libraries, and the device.
    """

    id: str
    kind: Kind
    name: str
    created_at: datetime
    teacher: str
    student: str
    formula: str
    ap: float | None
    interval: list[float | None] | None
    seeds: list[int]
    images: int | None
    dataset: str
    dataset_digest: str
    versions: dict[str, str]
    cost: Cost


class Group(BaseModel):
    """Results that were measured on the same images, and may be compared.

    why: what keeps them from the first group; null there.
    """

    dataset: str
    dataset_digest: str
    images: int | None
    why: str | None
    results: list[Compared]


class Comparison(BaseModel):
    """Results in groups: APs of one group were measured on the same images, those of two say nothing about one another."""

    groups: list[Group]


COMPARED_EXAMPLE: dict[str, Any] = {
    "id": "0198a3e0-55aa-7b11-8d2f-0c6c2c7e9f10",
    "kind": "search",
    "name": "digits_gfl seed 0",
    "created_at": "2026-05-04T10:26:31Z",
    "teacher": "gfl_r18w32_fpn32",
    "student": "gfl_r18w16_fpn32",
    "formula": "2·l2(standardize(global))",
    "ap": 31.2,
    "interval": [29.0, 33.1],
    "seeds": [1, 2, 3, 4, 5],
    "images": 300,
    "dataset": "digits",
    "dataset_digest": "d506edc13ceb0000",
    "versions": {"detkds_core": "0.1.0", "torch": "2.14.1", "device": "cpu"},
    "cost": {"seconds": 471.4, "iterations": 4200, "trunk_seconds": 5.2, "trunk_iterations": 60},
}
OTHER_EXAMPLE = {
    **COMPARED_EXAMPLE,
    "id": "0198a3e4-11b2-7c09-9e1c-52f5a9c01b7d",
    "kind": "distill",
    "name": "trees_gfl, pkd",
    "interval": None,
    "seeds": [0],
    "images": 40,
    "dataset": "trees",
    "dataset_digest": "77aa0c5e11d90000",
    "cost": {"seconds": 90.5, "iterations": 300, "trunk_seconds": None, "trunk_iterations": None},
}
EXAMPLE = {
    "groups": [
        {"dataset": "digits", "dataset_digest": "d506edc13ceb0000", "images": 300, "why": None, "results": [COMPARED_EXAMPLE]},
        {
            "dataset": "trees",
            "dataset_digest": "77aa0c5e11d90000",
            "images": 40,
            "why": "measured on trees (digest 77aa0c5e11d9), the first group on digits (digest d506edc13ceb):"
            " APs on other images are not compared",
            "results": [OTHER_EXAMPLE],
        },
    ]
}


@router.get("/results/compare", responses={200: example(EXAMPLE), **answers(NotFound)})
def compare_results(service: Service, query: Annotated[CompareQuery, Query()]) -> Comparison:
    """Several results side by side: policy, AP with its interval, and what both rest on.

    Results of different evaluation sets (another dataset, or other images of it) come in groups of their own, with the reason: their APs
    are never compared.
    """
    ids = wanted_ids(query.ids)
    with service.store.read() as session:
        found = stored.some(session, [one for one in ids if is_id(one)], owner=service.caller.sees)
    missing = [one for one in ids if one not in found]
    if missing:
        raise NotFound(f"there is no result {', '.join(missing)}; GET /results lists them")
    return Comparison(groups=grouped([found[one] for one in ids]))


def wanted_ids(text: str) -> list[str]:
    """The ids of a query. Raises InvalidInput."""
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not FEWEST <= len(ids) <= MOST:
        raise invalid([FieldError("?ids", f"{len(ids)} given; {FEWEST} to {MOST} results can be compared, with commas between their ids")])
    twice = next((one for place, one in enumerate(ids) if one in ids[:place]), None)
    if twice is not None:
        raise invalid([FieldError("?ids", f"{twice} appears twice; name each result once")])
    return ids


def grouped(found: Sequence[Result]) -> list[Group]:
    """Results by the images that they were measured on, in the order of their first."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for one in found:
        known = one.dataset_digest and images_of(one) is not None
        # What does not say on which images it was measured is like nothing else.
        groups.setdefault((one.dataset_digest, images_of(one)) if known else (one.id,), []).append(one)
    first = found[0]
    return [
        Group(
            dataset=members[0].dataset,
            dataset_digest=members[0].dataset_digest,
            images=images_of(members[0]),
            why=None if members[0] is first else why_apart(members[0], first),
            results=[compared(one) for one in members],
        )
        for members in groups.values()
    ]


def why_apart(one: Result, first: Result) -> str:
    """Why two results may not be compared."""
    for result, whose in ((one, "this"), (first, "the first")):
        missing = [name for name, value in (("dataset digest", result.dataset_digest), ("image count", images_of(result))) if not value]
        if missing:
            return f"{whose} has no {' and no '.join(missing)}, so nothing says that both were measured on the same images"
    if one.dataset_digest != first.dataset_digest:
        here, there = (f"{each.dataset} (digest {each.dataset_digest[:SHORT]})" for each in (one, first))
        return f"measured on {here}, the first group on {there}: APs on other images are not compared"
    return (
        f"measured on {images_of(one)} images of {one.dataset}, the first group on {images_of(first)} of the same dataset:"
        " APs on other images are not compared"
    )


def images_of(result: Result) -> int | None:
    """How many report images a result rests on; which they are follows from the dataset."""
    images = result.evidence.get("images")
    return images.get("report") if isinstance(images, Mapping) else None


def compared(result: Result) -> Compared:
    evidence = result.evidence
    cost: Mapping[str, Any] = evidence.get("cost") or {}
    versions = {**(evidence.get("versions") or {}), **result.environment}
    return Compared(
        id=result.id,
        kind="search" if result.kind == "search" else "distill",
        name=result.name,
        created_at=result.created_at,
        teacher=result.teacher,
        student=result.student,
        formula=formula(from_json(result.policy)),
        ap=result.ap,
        interval=result.metrics.get("interval"),
        seeds=seeds_of(evidence),
        images=images_of(result),
        dataset=result.dataset,
        dataset_digest=result.dataset_digest,
        versions={name: str(value) for name, value in versions.items()},
        cost=Cost(**{name: cost.get(name) for name in Cost.model_fields}),
    )


def seeds_of(evidence: Mapping[str, Any]) -> list[int]:
    """The seeds that an AP is the mean over: of a search those of its confirmation, of a distillation its own."""
    if evidence.get("seed") is not None:
        return [evidence["seed"]]
    seeds = evidence.get("seeds")
    return list(seeds.get("confirmation") or ()) if isinstance(seeds, Mapping) else []
