"""`/results`: what came out, with its evidence and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api.caller import Caller
from detkds_api.download import download, downloads, text_of
from detkds_api.fields import Name, Tag
from detkds_api.lists import SORT, ListQuery, Page, page_of
from detkds_api.problems import Damaged, NotFound, Unavailable, answers
from detkds_api.service import Id, Service, example
from detkds_core.policy import formula, from_json
from detkds_core.policy.distillers import DISTILLERS
from detkds_core.policy.vocabulary import DISTANCES, KNOWLEDGE, SLOTS
from detkds_core.store import results as stored
from detkds_core.store.ids import is_id
from detkds_core.store.models import Result
from detkds_core.store.vocabulary import ResultKind as Kind

router = APIRouter(tags=["results"])

Format = Literal["safetensors", "pth", "config", "last", "last_pth"]
ARTIFACT: Mapping[str, str] = {  # as the trainer names them
    "safetensors": "checkpoint",
    "pth": "checkpoint_pth",
    "config": "config",
    "last": "checkpoint_last",
    "last_pth": "checkpoint_last_pth",
}
TITLE: Mapping[str, str] = {
    "safetensors": "safetensors checkpoint",
    "pth": "PyTorch checkpoint",
    "config": "configuration",
    "last": "last checkpoint",
    "last_pth": "last PyTorch checkpoint",
}
SUFFIX: Mapping[str, str] = {"safetensors": "safetensors", "pth": "pth", "config": "py", "last": "safetensors", "last_pth": "pth"}


# What `term` may ask for: the words of the policy language, and the distillers.
TERMS = tuple(
    sorted(
        {*KNOWLEDGE, *DISTILLERS, *(name for names in DISTANCES.values() for name in names)}
        | {name for slots in SLOTS.values() for _, names in slots for name in names if name != "none"}
    )
)

FORMATS = (
    "`pth`: a plain MMDetection checkpoint; `config`: the MMDetection configuration it goes with; `safetensors`: the same weights. "
    "With `eval_every` these are the best by the selection images; `last`, `last_pth`: those at the end."
)


def known_term(word: str) -> str:
    """Raises ValueError for a word that no policy has."""
    if word not in TERMS:
        raise ValueError(f"{word!r} is in no policy; one of {', '.join(TERMS)}")
    return word


class ResultsQuery(ListQuery):
    """What the list of results can be asked for."""

    sort: Literal["created_at", "-created_at", "ap", "-ap"] = Field(default="-created_at", description=SORT)
    name: Name | None = Field(default=None, description="Those whose name contains this, in upper or lower case.")
    tag: Tag | None = Field(default=None, description="Those of searches and distillations with this tag.")
    kind: Kind | None = Field(default=None, description="Those of searches, or of distillations.")
    dataset: Name | None = Field(default=None, description="Those on this dataset.")
    teacher: Name | None = Field(default=None, description="Those with this teacher, a detector of `GET /detectors`.")
    student: Name | None = Field(default=None, description="Those with this student, a detector of `GET /detectors`.")
    term: Annotated[Name, AfterValidator(known_term)] | None = Field(
        default=None,
        description="Those whose policy has this knowledge, transform, distance or distiller.",
        json_schema_extra={"enum": list(TERMS)},
    )
    ap_at_least: float | None = Field(default=None, ge=0, le=100, description="Those with this AP (percent) or more.")
    ap_at_most: float | None = Field(default=None, ge=0, le=100, description="Those with this AP (percent) or less.")


class ResultView(BaseModel):
    """What came out of a search (its winner) or of a distillation (its student).

    teacher, student: detectors. ap: percent, on the report images; metrics: all figures; evidence: what they rest on (seeds, images,
    dataset digest, seconds).
    Of a search, `metrics.returned` says what the policy is: `searched`, or the best hand-designed distiller (`reference`) where the search
    did not beat it beyond noise, with `metrics.why`; the best of either stands in `metrics.searched` and `metrics.reference` all the same.
    `evidence.summary.funnel` counts its candidates: proposed, `rejected` by each gate, `duplicates`, `infeasible`, trained at each rung.
    `audited` of the refused were trained all the same, and `falsely_rejected` of these are among the best third where they were measured:
    `false_reject_rate` (0 to 1) with its 95 % `false_reject_interval`, null where none was audited. `gates` has these four of each gate,
    with how many it `refused` (doubles and infeasible ones among them) and the `seconds` that it took; `look_seconds`: of all looks at
    candidates, gates included. Seconds of a trainer; null where it did not say.
    """

    id: str
    kind: Kind
    created_at: datetime
    search_id: str | None
    distillation_id: str | None
    name: str
    dataset: str
    teacher: str
    student: str
    formula: str
    policy: dict[str, Any]
    ap: float | None
    metrics: dict[str, Any]
    evidence: dict[str, Any]
    environment: dict[str, Any]
    checkpoint: bool


class ResultPolicy(BaseModel):
    """The policy of a result, to be trained with again, here or elsewhere.

    policy: as `POST /distill` and `POST /searches` take it; formula: the same as text, which they take too. config: the text of the plain
    MMDetection configuration (a Python file) of the student that was trained under it, which loads the checkpoint of `format=pth`; it
    describes the student as it ships, so that nothing of the distillation is in it. null where there is no such student: a search keeps no
    weights, so that its result has a policy alone, and a distillation from before configurations were kept has none either.
    """

    policy: dict[str, Any]
    formula: str
    config: str | None


EXAMPLE = {
    "id": "0198a3e0-55aa-7b11-8d2f-0c6c2c7e9f10",
    "kind": "distill",
    "created_at": "2026-05-04T10:26:31Z",
    "search_id": None,
    "distillation_id": "0198a3d0-1f7a-7f0e-8b44-6a0f1f6f5c21",
    "name": "digits_gfl, searched policy",
    "dataset": "digits",
    "teacher": "gfl_r18w32_fpn32",
    "student": "gfl_r18w16_fpn32",
    "formula": "2·l2(standardize(global))",
    "policy": {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 2.0}]},
    "ap": 31.2,
    "metrics": {"student": {"ap": 31.2, "ap50": 54.0, "ap75": 30.1, "parameters": 530000, "images": 300}},
    "evidence": {"dataset": "5f0c0d0e", "seeds": [0], "images": 300, "seconds": 71.4},
    "environment": {"torch": "2.14.1", "device": "cpu"},
    "checkpoint": True,
}
POLICY_EXAMPLE = {
    "policy": EXAMPLE["policy"],
    "formula": EXAMPLE["formula"],
    "config": "# A plain MMDetection configuration of the distilled student.\ndefault_scope = 'mmdet'\n\nmodel = {'type': 'GFL'}\n",
}
DETECTIONS_EXAMPLE = {"student": [{"image_id": 1, "category_id": 8, "bbox": [12.5, 40.0, 18.2, 24.9], "score": 0.71}], "teacher": []}

REPORT_EXAMPLE = '<!doctype html>\n<html lang="en"><head><title>digits_gfl, searched policy</title></head><body>...</body></html>'


def view(result: Result) -> ResultView:
    return ResultView(
        id=result.id,
        kind="search" if result.kind == "search" else "distill",
        created_at=result.created_at,
        search_id=result.search_id,
        distillation_id=result.distillation_id,
        name=result.name,
        dataset=result.dataset,
        teacher=result.teacher,
        student=result.student,
        formula=formula(from_json(result.policy)),
        policy=result.policy,
        ap=result.ap,
        metrics=result.metrics,
        evidence=result.evidence,
        environment=result.environment,
        checkpoint=ARTIFACT["safetensors"] in result.artifacts,
    )


@router.get("/results", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_results(service: Service, query: Annotated[ResultsQuery, Query()]) -> Page[ResultView]:
    """The newest results first, or in another order; all, or those that every filter lets through."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, owner=service.caller.sees, **query.page()))
        return Page(items=[view(one) for one in found], next_cursor=after)


@router.get("/results/{result_id}", responses={200: example(EXAMPLE)})
def get_result(result_id: Id, service: Service) -> ResultView:
    """One result with its evidence."""
    with service.store.read() as session:
        return view(existing(session, service.caller, result_id))


@router.get("/results/{result_id}/policy", responses={200: example(POLICY_EXAMPLE), **answers(Damaged, Unavailable)})
def get_policy(result_id: Id, service: Service) -> ResultPolicy:
    """The policy of a result as JSON and as formula, and the MMDetection configuration of the student that was trained under it.

    `config` is null for the result of a search, which has no checkpoint of its own: distil with its policy first (`POST /distill`).
    """
    with service.store.read() as session:
        result = existing(session, service.caller, result_id)
    name = result.artifacts.get(ARTIFACT["config"])
    title = f"configuration of result {result_id}"
    config = text_of(service.artifacts, name, title, sha256=digest_of(result, ARTIFACT["config"])) if name is not None else None
    return ResultPolicy(policy=result.policy, formula=formula(from_json(result.policy)), config=config)


@router.get(
    "/results/{result_id}/report",
    response_class=HTMLResponse,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}, "example": REPORT_EXAMPLE}}, "description": "the report"}},
)
def get_report(result_id: Id, service: Service) -> HTMLResponse:
    """The report of a result: one HTML file that stands alone, without scripts, with pictures inside.

    Of a search: whom its confirmation measured on the report images (AP in percent, with intervals), every candidate, what the search
    teaches, what it rests on. Of a distillation: student and teacher on the same images. It is made of what is stored when it is asked for.
    """
    # Imported here: the report draws pictures, and its libraries take seconds that the start of the service need not wait for.
    from detkds_api import reports

    with service.store.read() as session:
        data = reports.report_of(session, existing(session, service.caller, result_id))
    headers = {**reports.HEADERS, "Content-Disposition": f'inline; filename="report-{result_id}.html"'}
    return HTMLResponse(reports.page(data), headers=headers)


@router.get(
    "/results/{result_id}/checkpoint",
    response_class=FileResponse,
    responses=downloads({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}),
)
def get_checkpoint(
    result_id: Id,
    service: Service,
    request: Request,
    format: Annotated[Format, Query(description=FORMATS)] = "safetensors",
) -> Response:
    """The distilled student as a file: its weights, or the configuration that MMDetection loads them with.

    `ETag` and `Repr-Digest` are its SHA-256; a download that broke off goes on with `Range`.
    """
    title = TITLE[format]
    return artifact(
        service, request, result_id, ARTIFACT[format], title, "application/octet-stream", f"student-{result_id}.{SUFFIX[format]}"
    )


@router.get(
    "/results/{result_id}/detections",
    response_class=FileResponse,
    responses=downloads({"application/json": {"schema": {"type": "object"}, "example": DETECTIONS_EXAMPLE}}),
)
def get_detections(result_id: Id, service: Service, request: Request) -> Response:
    """What student and teacher find in the report images, as COCO detections (bbox: x, y, width, height in pixels).

    One with `not_finite` had a box or a score that was no number: it has a box without area, which matches nothing.
    """
    return artifact(service, request, result_id, "detections", "list of detections", "application/json")


def artifact(
    service: Service, request: Request, result_id: str, kind: str, title: str, media_type: str, filename: str | None = None
) -> Response:
    """The file that a trainer left. Raises NotFound, and what `download` raises."""
    with service.store.read() as session:
        result = existing(session, service.caller, result_id)
    name = result.artifacts.get(kind)
    if name is None:
        advice = "distil with its policy first (POST /distill)" if result.kind == "search" else "its trainer left none"
        raise NotFound(f"result {result_id} has no {title}; {advice}")
    return download(
        request,
        service.artifacts,
        name,
        f"{title} of result {result_id}",
        sha256=digest_of(result, kind),
        media_type=media_type,
        filename=filename,
    )


def digest_of(result: Result, kind: str) -> str | None:
    """The SHA-256 that a file of a result must have; None: it was stored before digests were kept."""
    digests: Mapping[str, str] = result.artifacts.get("digests") or {"checkpoint": result.artifacts.get("sha256")}
    return digests.get(kind)


def existing(session: Session, caller: Caller, result_id: str) -> Result:
    """Raises NotFound, also for what is somebody else's."""
    result = stored.get(session, result_id, owner=caller.sees) if is_id(result_id) else None
    if result is None:
        raise NotFound(f"there is no result {result_id}; GET /results lists them")
    return result
