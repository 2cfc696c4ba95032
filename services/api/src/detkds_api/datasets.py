"""`GET /datasets`, `POST /datasets`: what searches can run on, and the checks that it passes first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as InPath
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.checking import Checker
from detkds_api.fields import Body, PathText
from detkds_api.lists import Cursor, Limit, Page, page_of
from detkds_api.paths import inside
from detkds_api.problems import (
    Conflict,
    FieldError,
    FieldErrorView,
    Forbidden,
    NotFound,
    TooMany,
    Unavailable,
    answers,
    invalid,
    pointer,
)
from detkds_api.service import Running, Service, example
from detkds_api.settings import Settings
from detkds_api.slots import RETRY_SECONDS
from detkds_core.catalogue import PAIRS
from detkds_core.store import datasets as stored
from detkds_core.store import owners
from detkds_core.store.artifacts import file_sha256
from detkds_core.store.models import Dataset
from detkds_core.store.vocabulary import DatasetState

router = APIRouter(tags=["datasets"])

BUILTIN = ("digits", "trees")  # written again here, for their room brings numpy and Pillow, which a start need not wait for
LISTED = 3  # problems that a list names of each dataset; one by itself has all
MOST_UNCHECKED, UNCHECKED = 100, 10  # datasets that may wait for their check: of everybody together, of one owner

PLAIN = "[a-z0-9][a-z0-9._-]{0,63}"


def plain_name(text: str) -> str:
    """A name that needs no quotes anywhere. Raises ValueError."""
    if not re.fullmatch(PLAIN, text):
        raise ValueError("use at most 64 small letters, digits, '.', '_' and '-', a letter or digit first")
    return text


DatasetName = Annotated[str, AfterValidator(plain_name), Field(json_schema_extra={"pattern": f"^{PLAIN}$"})]


def checker_of(request: Request) -> Checker:
    checker: Checker = request.app.state.checker
    return checker


DatasetPath = Annotated[str, InPath(examples=["cells"])]  # any text is taken, so that what is no name is answered as what is not there
Checks = Annotated[Checker, Depends(checker_of)]


class SplitPaths(Body):
    """A COCO instances file and the folder of its images, both absolute and below a registered folder."""

    annotations: PathText
    images: PathText


class DatasetRequest(Body):
    """A COCO-format dataset to check and to remember."""

    name: DatasetName
    train: SplitPaths
    val: SplitPaths


class CheckProgress(BaseModel):
    """How far a check is: of `total` images `done`; of an annotation file, 0 of 0."""

    done: int
    total: int
    message: str


class DatasetView(BaseModel):
    """A dataset that searches may name once it is READY. CHECKING: `progress` says how far; REFUSED: `problems` say why, by the fields of
    the request that asked for it.

    A built-in one is made on first use; until then nothing more is told of it.
    """

    name: str
    builtin: bool
    state: DatasetState
    classes: list[str]
    train_images: int | None
    val_images: int | None
    digest: str | None
    progress: CheckProgress | None
    problems: list[FieldErrorView]


EXAMPLE: dict[str, Any] = {
    "name": "cells",
    "builtin": False,
    "state": "READY",
    "classes": ["nucleus", "membrane"],
    "train_images": 800,
    "val_images": 200,
    "digest": "5f0c0d0e…",
    "progress": None,
    "problems": [],
}
CHECKING = {
    **EXAMPLE,
    "state": "CHECKING",
    "classes": [],
    "train_images": None,
    "val_images": None,
    "digest": None,
    "progress": {"done": 310, "total": 800, "message": "reading the images of train"},
}
REFUSED = {
    **CHECKING,
    "state": "REFUSED",
    "progress": None,
    "problems": [{"pointer": "/train/annotations", "message": "annotations[17].bbox (id 4): [9, 9, 0, 5] has no area"}],
}
REQUEST_EXAMPLE = {
    "name": "cells",
    "train": {"annotations": "/data/cells/train.json", "images": "/data/cells/train"},
    "val": {"annotations": "/data/cells/val.json", "images": "/data/cells/val"},
}


def view(record: Dataset, most: int | None = None) -> DatasetView:
    """most: problems that it names; None: all."""
    data = record.data or {"classes": [], "train": {}, "val": {}}
    return DatasetView(
        name=record.name,
        builtin=False,
        state=record.state,  # type: ignore[arg-type]
        classes=list(data["classes"]),
        train_images=data["train"].get("count"),
        val_images=data["val"].get("count"),
        digest=record.digest,
        progress=CheckProgress(**record.progress) if record.progress is not None else None,
        problems=[FieldErrorView(**one) for one in (record.problems or [])[:most]],
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
    if record.data is None:
        why = "is being checked; wait until it is READY" if record.state == "CHECKING" else "was refused; mend it and register it again"
        raise invalid([FieldError("/dataset", f"{name!r} {why} (GET /datasets/{name})")])
    return dict(record.data)


@router.post(
    "/datasets",
    status_code=202,
    responses={
        202: example(CHECKING),
        200: {**example(EXAMPLE), "description": "It was there already", "model": DatasetView},
        **answers(Conflict, TooMany, Unavailable),
    },
    openapi_extra=example(REQUEST_EXAMPLE, request=True),
)
def register_dataset(wanted: DatasetRequest, service: Service, checker: Checks, response: Response) -> DatasetView:
    """Check a dataset (files, images, boxes, ids, leaks between train and val) and remember it under a name.

    The answer comes when that is begun; `Location` tells where to look until it is READY, or REFUSED with all that is wrong. One that was
    refused is checked again when its owner asks for it again. Asking again for the same files answers with what is there (200 where it is
    READY); other files under a name that is taken are refused, and so are annotations that have changed since.
    """
    if wanted.name in BUILTIN:
        raise Conflict(f"{wanted.name!r} is the name of a built-in dataset; choose another")
    asked = files_of(wanted, service.settings.data_roots)
    with service.store.begin() as session:
        owners.hold(session, service.caller.owner)
        known = stored.get(session, wanted.name)
        if known is None or known.state == "REFUSED":
            with_room(session, service)
        record = stored.ask(session, name=wanted.name, owner=service.caller.owner, asked=asked)
    if record.state == "REFUSED":
        raise Conflict(f"{wanted.name!r} is a dataset of another owner, whose check it did not pass; choose another name")
    if (difference := differing(record, asked)) is not None:
        raise Conflict(f"{wanted.name!r} is registered{difference}; choose another name")
    response.headers["Location"] = f"/datasets/{record.name}"
    if record.state == "READY":
        response.status_code = 200
    checker.nudge()
    return view(record)


def with_room(session: Session, service: Running) -> None:
    """Raises Unavailable, TooMany where too many wait for their check."""
    if (unchecked := stored.count_unchecked(session)) >= MOST_UNCHECKED:
        message = f"{unchecked} datasets wait for their check, which is as many as may; ask again in a while"
        raise Unavailable(message, headers={"Retry-After": str(RETRY_SECONDS)})
    if service.caller.sees is not None and (own := stored.count_unchecked(session, owner=service.caller.owner)) >= UNCHECKED:
        raise TooMany(f"{own} datasets of {service.caller.owner!r} wait for their check; wait for one, or remove it")


def differing(record: Dataset, asked: Mapping[str, Mapping[str, str]]) -> str | None:
    """In what a dataset that is there differs from what is asked for: in its files, or in what they hold by now. None: in nothing."""
    known = record.asked or record.data
    assert known is not None
    told = f" (digest {record.digest[:12]}…)" if record.digest else ""
    if any(known[split][kind] != path for split, paths in asked.items() for kind, path in paths.items()):
        return f" with other files{told}"
    for split, paths in asked.items():
        sha256 = (record.data or known)[split].get("sha256")
        if sha256 is not None and file_sha256(Path(paths["annotations"])) != sha256:
            return f"{told}, and the annotations of {split} have changed since"
    return None


def files_of(wanted: DatasetRequest, roots: Sequence[Path]) -> dict[str, dict[str, str]]:
    """The real paths of a request's files and folders, as the store has them. Raises InvalidInput."""
    found: dict[str, dict[str, str]] = {"train": {}, "val": {}}
    errors: list[FieldError] = []
    for split, choice in (("train", wanted.train), ("val", wanted.val)):
        for kind in ("annotations", "images"):
            try:
                found[split][kind] = str(inside(getattr(choice, kind), roots))
            except ValueError as error:
                errors.append(FieldError(pointer(split, kind), str(error)))
    if errors:
        raise invalid(errors)
    return found


def builtin_view(name: str) -> DatasetView:
    nothing: dict[str, Any] = {"train_images": None, "val_images": None, "digest": None, "progress": None}
    return DatasetView(name=name, builtin=True, state="READY", classes=[], problems=[], **nothing)


@router.get("/datasets", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_datasets(service: Service, limit: Limit = 50, cursor: Cursor = None) -> Page[DatasetView]:
    """The built-in datasets, then the registered ones by name; of what is wrong with one that was REFUSED the first few problems."""
    items: list[DatasetView] = []
    if cursor is None:
        items = [builtin_view(name) for name in BUILTIN]
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, limit=limit, cursor=cursor))
        items += [view(record, LISTED) for record in found]
    return Page(items=items, next_cursor=after)


@router.get("/datasets/{name}", responses={200: example(EXAMPLE), **answers(NotFound)})
def get_dataset(name: DatasetPath, service: Service) -> DatasetView:
    """One dataset: what it has, how far its check is, or what is wrong with it."""
    if name in BUILTIN:
        return builtin_view(name)
    with service.store.read() as session:
        record = stored.get(session, name) if "\0" not in name else None
        if record is None:
            raise NotFound(f"there is no dataset {name!r}; GET /datasets lists them")
        return view(record)


@router.delete("/datasets/{name}", responses={200: example(REFUSED), **answers(Conflict, Forbidden, NotFound)})
def delete_dataset(name: DatasetPath, service: Service) -> DatasetView:
    """Remove a dataset that is not READY: one that was REFUSED, or whose check shall end. The answer is what it was.

    A READY one stays: results rest on it.
    """
    with service.store.begin() as session:
        record = stored.get(session, name) if "\0" not in name else None
        if record is None and name not in BUILTIN:
            raise NotFound(f"there is no dataset {name!r}; GET /datasets lists them")
        if record is None or record.state == "READY":
            raise Conflict(f"{name!r} is READY, and stays: results may rest on it")
        if service.caller.sees not in (None, record.owner):
            raise Forbidden(f"{name!r} is a dataset of another owner, who may remove it, as a key with scope admin may")
        was = view(record)
        stored.remove(session, name)
        return was
