"""`GET /search-space`: what a search on a pair would choose from, and what it could not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from detkds_api.datasets import BUILTIN, find_dataset
from detkds_api.fields import Asked, Name
from detkds_api.policies import CLASSES
from detkds_api.problems import FieldError, InvalidInput, dotted, invalid
from detkds_api.search_request import SPACE, WEIGHTS, Breadth, Weights, space_of
from detkds_api.service import Running, Service, example
from detkds_core.catalogue import DETECTORS, PAIRS, Exchange, base_recipe, detector, exchange, lacking_regions, pair_facts
from detkds_core.names import meant
from detkds_core.policy import PairFacts
from detkds_core.policy.census import Census, census
from detkds_core.policy.space import regions_of
from detkds_core.policy.vocabulary import KNOWLEDGE, SLOTS

router = APIRouter(tags=["policies"])

DEFAULT_CLASSES = CLASSES["coco"]


class SpaceQuery(Asked):
    """Whose search space: a `pair` of the catalogue, or a teacher and a student; a detector beside a pair takes the place of the pair's."""

    pair: Name | None = Field(default=None, description="of `GET /detectors`", json_schema_extra={"enum": list(PAIRS)})
    teacher: Name | None = Field(
        default=None, description="a detector of `GET /detectors`; default: the pair's", json_schema_extra={"enum": list(DETECTORS)}
    )
    student: Name | None = Field(
        default=None, description="a detector of `GET /detectors`; default: the pair's", json_schema_extra={"enum": list(DETECTORS)}
    )
    dataset: Name | None = Field(
        default=None, description=f"of `GET /datasets`, for its classes; default: the pair's, else as many as COCO has, {DEFAULT_CLASSES}"
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="images of one forward on one device; default: of the recipe that the pair, else the student, is searched with",
    )
    resize: bool = Field(default=False, description="levels of different strides are matched too")
    space: Breadth = Field(default="published", description=SPACE)
    weights: Weights = Field(default="balanced", description=WEIGHTS)


class Place(BaseModel):
    """A transform of a term: what it is called, and the names that some legal formula has there."""

    place: str
    names: list[str]


class KnowledgeSpace(BaseModel):
    """What a search chooses from for one knowledge.

    transforms: by place, innermost first, as the `transforms` of a term are. distances, regions: names; lacking: why the pair cannot look
    at other regions, in a `full` space. weights: to choose from, of any formula. combinations: of all names, legal or not; legal: those
    that no rule refuses; formulas: the different losses among these, weights aside. refused: how many combinations each rule refuses, the
    most first; one that several refuse counts for the first.
    """

    name: str
    transforms: list[Place]
    distances: list[str]
    regions: list[str]
    lacking: dict[str, str]
    weights: list[float]
    combinations: int
    legal: int
    formulas: int
    refused: dict[str, int]


class SearchSpaceView(BaseModel):
    """The search space of a pair.

    classes: of the dataset; images_per_batch: on one device. knowledge: what the pair can exchange, in the order of the policy language,
    empty where it can exchange nothing; excluded: why not the rest.
    """

    pair: str | None
    teacher: str
    student: str
    classes: int
    images_per_batch: int
    resize: bool
    space: Breadth
    weights: Weights
    knowledge: list[KnowledgeSpace]
    excluded: dict[str, str]


EXAMPLE = {
    "pair": None,
    "teacher": "gfl_r18w32_fpn32",
    "student": "retinanet_r18w16_fpn32",
    "classes": 80,
    "images_per_batch": 8,
    "resize": False,
    "space": "published",
    "weights": "balanced",
    "knowledge": [  # the first of three
        {
            "name": "global",
            "transforms": [
                {"place": "attention", "names": ["none", "satt", "natt", "catt", "mask"]},
                {
                    "place": "scale",
                    "names": ["none", "scale_r1", "scale_r2", "multi_scale_r4", "local_s1", "local_s2", "local_s4", "scale"],
                },
                {"place": "normalisation", "names": ["none", "norm_HW", "norm_C", "norm_N", "softmax_C", "standardize"]},
            ],
            "distances": ["l1", "l2", "smooth_l1", "pear", "cos", "kl", "cor", "ssim"],
            "regions": ["all"],
            "lacking": {},
            "weights": [0.3, 1.0, 3.0, 10.0, 30.0, 100.0],
            "combinations": 4800,
            "legal": 3840,
            "formulas": 2286,
            "refused": {"kl needs a softmax": 480, "ssim needs a map": 300, "one position is left": 180},
        }
    ],
    "excluded": {
        "logits": "the teacher has 1 prediction a cell, the student 3",
        "localization": "the teacher has 1 prediction a cell, the student 3",
    },
}


class Asking(NamedTuple):
    """A query with everything that it leaves open. classes: of the dataset; images: of a batch on one device."""

    teacher: str
    student: str
    resize: bool
    classes: int
    images: int
    space: Breadth

    @property
    def offer(self) -> Exchange:
        return exchange(DETECTORS[self.teacher], DETECTORS[self.student], self.resize)

    @property
    def facts(self) -> PairFacts:
        return pair_facts(self.offer, DETECTORS[self.student], self.classes, self.images)


@router.get("/search-space", responses={200: example(EXAMPLE)})
def get_search_space(service: Service, query: Annotated[SpaceQuery, Query()]) -> SearchSpaceView:
    """What a search on a pair would choose from, knowledge by knowledge, and why it leaves other knowledge out.

    As `POST /searches/preview` counts it, without a teacher's checkpoint. The first answer for a pair counts all formulas and takes
    seconds in a `full` space; it is kept.
    """
    asked = resolved(service, query)
    offer = asked.offer
    space = space_of(asked.facts, offer.knowledge or KNOWLEDGE, query.space, query.weights)
    return SearchSpaceView(
        pair=query.pair,
        teacher=asked.teacher,
        student=asked.student,
        classes=asked.classes,
        images_per_batch=asked.images,
        resize=asked.resize,
        space=query.space,
        weights=query.weights,
        knowledge=[
            KnowledgeSpace(
                name=one.knowledge,
                transforms=[
                    Place(place=place, names=list(names)) for (place, _), names in zip(SLOTS[one.knowledge], one.names, strict=False)
                ],
                distances=list(one.names[-1]),
                regions=list(regions_of(one.knowledge, query.space, asked.facts)),
                lacking={} if query.space == "published" else lacking_regions(one.knowledge, offer),
                weights=list(space.weights(one.knowledge)),
                combinations=one.raw,
                legal=one.legal,
                formulas=one.distinct,
                refused=dict(one.refused),
            )
            for one in counted(asked)
        ],
        excluded=dict(offer.excluded),
    )


@lru_cache(maxsize=128)
def counted(asked: Asking) -> tuple[Census, ...]:
    """The formulas of each knowledge that the pair can exchange. Of a `full` space it takes seconds, hence the cache."""
    facts = asked.facts
    return tuple(census(kind, facts, asked.space) for kind in asked.offer.knowledge)


def resolved(service: Running, query: SpaceQuery) -> Asking:
    """Raises InvalidInput with every parameter that is wrong, and what would be right."""
    errors: list[FieldError] = []
    chosen = PAIRS.get(query.pair) if query.pair is not None else None
    if query.pair is not None and chosen is None:
        errors.append(FieldError("?pair", f"{query.pair!r} is not a pair of the catalogue; {meant(query.pair, PAIRS)}"))
    names: Mapping[str, str | None] = {
        role: getattr(query, role) or (getattr(chosen, role) if chosen else None) for role in ("teacher", "student")
    }
    if query.pair is None and query.teacher is None and query.student is None:
        errors.append(
            FieldError("?pair", f"is required: one of {', '.join(PAIRS)}; or give teacher and student, detectors of GET /detectors")
        )
    elif query.pair is None:
        errors += [
            FieldError(f"?{role}", f"is required, unless 'pair' names one of {', '.join(PAIRS)}")
            for role, name in names.items()
            if name is None
        ]
    for role, name in names.items():
        try:
            if name is not None:
                detector(name)
        except ValueError as error:
            errors.append(FieldError(f"?{role}", str(error)))
    classes = DEFAULT_CLASSES
    try:
        classes = classes_of(service, query.dataset, chosen.dataset if chosen else None)
    except InvalidInput as problem:
        errors += [FieldError(f"?{dotted(error.pointer)}", error.message) for error in problem.errors]
    teacher, student = names["teacher"], names["student"]
    if errors or teacher is None or student is None:
        raise invalid(errors)
    recipe = chosen.proxy if chosen else base_recipe(DETECTORS[student], 0, "proxy")[0].in_forwards()
    images = query.batch or max(1, recipe.batch // recipe.devices)
    return Asking(teacher, student, query.resize, classes, images, query.space)


def classes_of(service: Running, wanted: str | None, of_pair: str | None) -> int:
    """How many classes a dataset has. A built-in one is not made for that, and of a pair's the catalogue knows, registered or not.

    Raises InvalidInput for a name that is not known.
    """
    name = wanted or of_pair
    if name is None:
        return DEFAULT_CLASSES
    if name in BUILTIN or wanted is None:
        return CLASSES[name]
    with service.store.read() as session:
        data: dict[str, Any] = find_dataset(session, service.settings, name)
    return len(data["classes"])
