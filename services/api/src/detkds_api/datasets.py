"""`GET /datasets`, `POST /datasets`: what searches can run on."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.fields import Body, PathText
from detkds_api.lists import Cursor, Limit, Page, page_of
from detkds_api.paths import inside
from detkds_api.problems import Conflict, FieldError, Unavailable, answers, invalid, pointer
from detkds_api.service import Service, example
from detkds_api.settings import Settings
from detkds_api.slots import Slots
from detkds_core.catalogue import PAIRS
from detkds_core.store import datasets as stored

router = APIRouter(tags=["datasets"])

BUILTIN = ("digits", "trees")  # written again here, for their room brings numpy and Pillow, which a start need not wait for
registering = Slots(2, "datasets are being checked")


PLAIN = "[a-z0-9][a-z0-9._-]{0,63}"


def plain_name(text: str) -> str:
    """A name that needs no quotes anywhere. Raises ValueError."""
    if not re.fullmatch(PLAIN, text):
        raise ValueError("use at most 64 small letters, digits, '.', '_' and '-', a letter or digit first")
    return text


DatasetName = Annotated[str, AfterValidator(plain_name), Field(json_schema_extra={"pattern": f"^{PLAIN}$"})]


class SplitPaths(Body):
    """A COCO instances file and the folder of its images, both absolute and below a registered folder."""

    annotations: PathText
    images: PathText


class DatasetRequest(Body):
    """A COCO-format dataset to check and to remember."""

    name: DatasetName
    train: SplitPaths
    val: SplitPaths


class DatasetView(BaseModel):
    """A dataset that searches may name. A built-in one is made on first use; until then nothing more is told of it."""

    name: str
    builtin: bool
    classes: list[str]
    train_images: int | None
    val_images: int | None
    digest: str | None


EXAMPLE = {
    "name": "cells",
    "builtin": False,
    "classes": ["nucleus", "membrane"],
    "train_images": 800,
    "val_images": 200,
    "digest": "5f0c0d0e…",
}
REQUEST_EXAMPLE = {
    "name": "cells",
    "train": {"annotations": "/data/cells/train.json", "images": "/data/cells/train"},
    "val": {"annotations": "/data/cells/val.json", "images": "/data/cells/val"},
}


def view(data: dict[str, Any], *, builtin: bool) -> DatasetView:
    return DatasetView(
        name=data["name"],
        builtin=builtin,
        classes=list(data["classes"]),
        train_images=data["train"].get("count"),
        val_images=data["val"].get("count"),
        digest=data["digest"],
    )


def make_builtin(settings: Settings, name: str | None, pair: str | None) -> None:
    """Make the built-in dataset that a request names, if it is missing: before the database is held, since it takes seconds.

    A name that is not known, or a dataset that cannot be made, is told by `find_dataset`.
    """
    name = name or (PAIRS[pair].dataset if pair is not None and pair in PAIRS else None)
    if name in BUILTIN:
        from detkds_core.datasets import DatasetError, load_dataset

        with suppress(DatasetError):
            load_dataset(name, settings.cache_folder)


def find_dataset(session: Session, settings: Settings, name: str) -> dict[str, Any]:
    """The dataset's JSON (docs/architecture.md) of a built-in or a registered name; a built-in one is made when it is missing.

    Raises InvalidInput that lists the known names.
    """
    if name in BUILTIN:
        from detkds_core.datasets import DatasetError, load_dataset

        try:
            return load_dataset(name, settings.cache_folder).to_json()
        except DatasetError as error:
            raise invalid([FieldError("/dataset", problem) for problem in error.problems]) from None
    record = stored.get(session, name)
    if record is None:
        known = ", ".join((*BUILTIN, *stored.names(session)))
        raise invalid([FieldError("/dataset", f"{name!r} is not a known dataset; one of {known}; POST /datasets registers yours")])
    return dict(record.data)


@router.post(
    "/datasets",
    status_code=201,
    responses={
        201: example(EXAMPLE),
        200: {**example(EXAMPLE), "description": "It was there already", "model": DatasetView},
        **answers(Conflict, Unavailable),
    },
    openapi_extra=example(REQUEST_EXAMPLE, request=True),
)
def register_dataset(wanted: DatasetRequest, service: Service, response: Response) -> DatasetView:
    """Check a dataset (files, images, boxes, ids, leaks between train and val) and remember it under a name.

    Registering the same content again answers 200 with what is there; other content under a name that is taken is refused.
    """
    from detkds_core.datasets import DatasetError, register

    if wanted.name in BUILTIN:
        raise Conflict(f"{wanted.name!r} is the name of a built-in dataset; choose another")
    paths: dict[tuple[str, str], Path] = {}
    errors: list[FieldError] = []
    for split, choice in (("train", wanted.train), ("val", wanted.val)):
        for kind in ("annotations", "images"):
            try:
                paths[split, kind] = inside(getattr(choice, kind), service.settings.data_roots)
            except ValueError as error:
                errors.append(FieldError(pointer(split, kind), str(error)))
    if errors:
        raise invalid(errors)
    try:
        with registering.one():
            dataset = register(
                wanted.name,
                paths["train", "annotations"],
                paths["train", "images"],
                paths["val", "annotations"],
                paths["val", "images"],
                roots=service.settings.data_roots,
            )
    except DatasetError as error:
        raise invalid([dataset_error(problem) for problem in error.problems]) from None
    data = dataset.to_json()
    with service.store.begin() as session:
        existing = stored.get(session, wanted.name)
        if existing is None:
            stored.create(session, name=wanted.name, data=data)
        elif existing.data != data:
            raise Conflict(
                f"{wanted.name!r} is registered with other content (digest {existing.data['digest'][:12]}…); choose another name"
            )
        else:
            response.status_code = 200
    return view(data, builtin=False)


def dataset_error(problem: str) -> FieldError:
    """`annotations.train: annotations[17].bbox ...` points at `/train/annotations`; the text is then about the place inside the file."""
    found = re.match(r"(annotations|images)\.(train|val)\b(?:: )?", problem)
    return FieldError(pointer(found[2], found[1]), problem[found.end() :]) if found else FieldError("", problem)


def builtin_view(name: str) -> DatasetView:
    return DatasetView(name=name, builtin=True, classes=[], train_images=None, val_images=None, digest=None)


@router.get("/datasets", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_datasets(service: Service, limit: Limit = 50, cursor: Cursor = None) -> Page[DatasetView]:
    """The built-in datasets, then the registered ones by name."""
    items: list[DatasetView] = []
    if cursor is None:
        items = [builtin_view(name) for name in BUILTIN]
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, limit=limit, cursor=cursor))
        items += [view(record.data, builtin=False) for record in found]
    return Page(items=items, next_cursor=after)
