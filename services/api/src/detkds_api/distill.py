"""`/distill`: train the student under one policy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from detkds_api import checkpoints, quota
from detkds_api.caller import Caller
from detkds_api.changes import EXAMPLE as CHANGE_EXAMPLE
from detkds_api.changes import Change, changed
from detkds_api.cloning import answered, cloned, kept_request, repeats
from detkds_api.datasets import make_builtin
from detkds_api.fields import NOTES, TAGS, Body, Name, Notes, Seed, Shallow, Tags
from detkds_api.lists import Page, RunsQuery, page_of
from detkds_api.once import once
from detkds_api.pairing import RecipeChoice, StudentChoice, TeacherChoice, resolve
from detkds_api.policies import read_policy
from detkds_api.problems import Conflict, FieldError, NoRoom, NotFound, answers, invalid
from detkds_api.progress import EXAMPLE as PROGRESS_EXAMPLE
from detkds_api.progress import Progress, db_now, seconds_between, seconds_left, share
from detkds_api.quota import DeviceMemory, Priority
from detkds_api.service import Id, IdempotencyKey, Running, Service, example
from detkds_api.workers import fleet
from detkds_core.policy import Policy, formula, from_json, to_json
from detkds_core.store import distillations as stored
from detkds_core.store import jobs, labels, results, searches
from detkds_core.store.ids import is_id
from detkds_core.store.models import Distillation, Search
from detkds_core.store.states import active
from detkds_core.store.vocabulary import DistillationState as State
from detkds_core.store.waiting import Fleet, of_subject

router = APIRouter(tags=["distill"])


class DistillRequest(Body):
    """What to train: either a `pair` of the catalogue, or dataset, teacher and student; and under which policy."""

    name: Name | None = Field(default=None, description="to find it again by")
    notes: Notes = Field(default="", description=NOTES)
    tags: Tags = Field(default=[], description=TAGS)
    pair: Name | None = Field(default=None, description="of `GET /detectors`; gives all three of the following and a recipe")
    dataset: Name | None = Field(default=None, description="of `GET /datasets`")
    teacher: TeacherChoice | None = None
    student: StudentChoice | None = None
    policy: Annotated[str | dict[str, Any], Shallow] = Field(
        description='a named policy, a formula, a policy, or {"search": id} for the winner of a search'
    )
    recipe: RecipeChoice | None = None
    seed: Seed = 0
    priority: Priority = 0
    device_memory_gib: DeviceMemory | None = None
    inherit: bool | None = Field(
        default=None,
        description="the student starts from the teacher's neck and head, from each module that fits; default: as the pair says, else true",
    )
    resize: bool = Field(
        default=False, description="levels of different strides are matched too; the teacher's maps take the student's sizes"
    )


class DistillChanges(DistillRequest):
    """What is to be different from a distillation whose request is repeated."""

    policy: Annotated[str | dict[str, Any], Shallow] | None = Field(default=None, description="default: that of the request")  # type: ignore[assignment]


class DistillationsQuery(RunsQuery):
    """What the list of distillations can be asked for."""

    state: State | None = Field(default=None, description="Those in this state.")


class DistillationView(BaseModel):
    """The training of one student under one policy, and where it stands. waiting: why it is not running; cloned_from: whose request it
    repeats."""

    id: str
    name: str
    notes: str
    tags: list[str]
    state: State
    reason: str | None
    created_at: datetime
    updated_at: datetime
    dataset: str
    teacher: str
    student: str
    formula: str
    priority: int
    device_memory_gib: int | None
    waiting: str | None
    progress: Progress
    result_id: str | None
    cloned_from: str | None
    spec: dict[str, Any]


REQUEST_EXAMPLE = {"pair": "digits_gfl", "policy": {"search": "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"}, "seed": 0}
EXAMPLE = {
    "id": "0198a3d0-1f7a-7f0e-8b44-6a0f1f6f5c21",
    "name": "digits_gfl, searched policy",
    "notes": "",
    "tags": ["digits"],
    "state": "RUNNING",
    "reason": None,
    "created_at": "2026-05-04T10:21:12Z",
    "updated_at": "2026-05-04T10:22:40Z",
    "dataset": "digits",
    "teacher": "gfl_r18w32_fpn32",
    "student": "gfl_r18w16_fpn32",
    "formula": "2·l2(standardize(global))",
    "priority": 0,
    "device_memory_gib": None,
    "waiting": None,
    "progress": {**PROGRESS_EXAMPLE, "step": "training", "done": 120, "total": 300, "best_ap": None, "message": ""},
    "result_id": None,
    "cloned_from": None,
    "spec": {"seed": 0},
}


@router.post(
    "/distill", status_code=202, responses={202: example(EXAMPLE), **answers(NoRoom)}, openapi_extra=example(REQUEST_EXAMPLE, request=True)
)
def create_distillation(
    wanted: DistillRequest, service: Service, response: Response, idempotency_key: IdempotencyKey = None
) -> DistillationView:
    """Start the training of a student. The answer comes when it is stored; `Location` tells where to look at it.

    With `"policy": {"search": id}`, what the request does not name (dataset, teacher, student, recipe) is the search's. Of a recipe that it
    was given without a pair, length and number of images stay its candidates', unless the length is greater than the student's own.
    """
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.begin() as session:
        answer = view(session, service, started(session, service, wanted, idempotency_key))
    response.headers["Location"] = f"/distill/{answer.id}"
    return answer


@router.post(
    "/distill/{distillation_id}/clone",
    status_code=202,
    responses={202: example({**EXAMPLE, "state": "QUEUED", "cloned_from": EXAMPLE["id"]}), **answers(Conflict, NoRoom)},
    openapi_extra=example({"seed": 1}, request=True),
)
def clone_distillation(
    distillation_id: Id,
    service: Service,
    response: Response,
    changes: DistillChanges | None = None,
    idempotency_key: IdempotencyKey = None,
) -> DistillationView:
    """Start a new distillation with the same request, checked as any: the body has what is to be different, such as the seed.

    Of `recipe`, the fields that are given change; another `pair` takes dataset, teacher and student with it. null takes a field back to its
    default. One from before requests were kept cannot be cloned (409).
    """
    with service.store.read() as session:
        source = existing(session, service.caller, distillation_id)
        wanted = cloned(source, changes or DistillChanges(), DistillRequest, "/distill")
    make_builtin(service.settings, wanted.dataset, wanted.pair)
    with service.store.begin() as session:
        answer = view(session, service, started(session, service, wanted, idempotency_key, cloned_from=distillation_id))
    response.headers["Location"] = f"/distill/{answer.id}"
    return answer


def started(
    session: Session, service: Running, wanted: DistillRequest, idempotency_key: str | None, cloned_from: str | None = None
) -> Distillation:
    """The distillation that a request asks for, stored. Raises InvalidInput, NoRoom, Forbidden, TooMany, KeyReused."""
    request = kept_request(wanted)

    def by_key(key: str) -> Distillation | None:
        return stored.by_key(session, key, owner=service.caller.owner)

    if idempotency_key is not None and (before := answered(by_key(idempotency_key), request, cloned_from)) is not None:
        return before
    asked, source = wanted.policy, named_search(session, service.caller, wanted.policy)
    if source is not None:
        asked = winner(session, source)
        wanted = wanted.model_copy(update=left_to(source, wanted))
    pairing = resolve(
        session,
        service,
        pair=wanted.pair,
        dataset=wanted.dataset,
        teacher=wanted.teacher,
        student=wanted.student,
        recipe=wanted.recipe,
        resize=wanted.resize,
        schedule="full",
        search=source,
    )
    policy = read_policy(asked, "/policy", pairing)
    spec = {
        **pairing.spec(),
        "policy": to_json(policy),
        "seed": wanted.seed,
        "inherit": pairing.inherits(wanted.inherit),
        "pair": wanted.pair,
    }

    def create() -> Distillation:
        checkpoints.hold(session, spec)
        quota.check(session, service, iterations=pairing.iterations, priority=wanted.priority)
        return stored.create(
            session,
            name=wanted.name or f"{wanted.pair or pairing.dataset['name']}, {called(policy, wanted.policy)}",
            notes=wanted.notes,
            tags=wanted.tags,
            spec=spec,
            dataset=pairing.dataset,
            request=request,
            cloned_from=cloned_from,
            idempotency_key=idempotency_key,
            owner=service.caller.owner,
            search_id=source.id if source is not None else None,
            priority=wanted.priority,
            device_memory_gib=wanted.device_memory_gib,
        )

    quota.wait_turn(session, service)
    return once(
        session,
        idempotency_key,
        by_key,
        create,
        lambda found: repeats(found, request, cloned_from, spec),
    )


@router.get("/distill", responses={200: example({"items": [EXAMPLE], "next_cursor": None})})
def list_distillations(service: Service, query: Annotated[DistillationsQuery, Query()]) -> Page[DistillationView]:
    """The newest distillations first, or in another order; all, or those that every filter lets through."""
    with service.store.read() as session:
        found, after = page_of(lambda: stored.list(session, owner=service.caller.sees, **query.page()))
        seen = fleet(session, service)
        return Page(items=[view(session, service, one, seen) for one in found], next_cursor=after)


@router.get("/distill/{distillation_id}", responses={200: example(EXAMPLE)})
def get_distillation(distillation_id: Id, service: Service) -> DistillationView:
    """One distillation and where it stands."""
    with service.store.read() as session:
        return view(session, service, existing(session, service.caller, distillation_id))


@router.patch(
    "/distill/{distillation_id}",
    responses={200: example({**EXAMPLE, **CHANGE_EXAMPLE}), **answers(Conflict)},
    openapi_extra=example(CHANGE_EXAMPLE, request=True),
)
def change_distillation(distillation_id: Id, change: Change, service: Service) -> DistillationView:
    """Change name, notes and tags of a distillation, in whatever state it is, and until it ends its priority, by which its jobs
    are taken from then on.

    What it does is decided when it is made.
    """
    with service.store.begin() as session:
        one = existing(session, service.caller, distillation_id)
        changed(session, service, one, change)
        return view(session, service, one)


@router.post("/distill/{distillation_id}/cancel", responses={200: example({**EXAMPLE, "state": "CANCELLED"}), **answers(Conflict)})
def cancel_distillation(distillation_id: Id, service: Service) -> DistillationView:
    """Stop a distillation: its trainer ends within seconds. One that has ended otherwise cannot be cancelled any more (409)."""
    with service.store.begin() as session:
        one = existing(session, service.caller, distillation_id)
        if not stored.cancel(session, distillation_id) and one.state != "CANCELLED":
            raise over(one, "cancel")
        return view(session, service, existing(session, service.caller, distillation_id))


@router.post("/distill/{distillation_id}/pause", responses={200: example({**EXAMPLE, "state": "PAUSED"}), **answers(Conflict)})
def pause_distillation(distillation_id: Id, service: Service) -> DistillationView:
    """Hold a distillation: its trainer ends within seconds and gives its device back; resumed, it goes on from what it kept.

    Pausing again changes nothing; what has ended cannot be paused (409).
    """
    with service.store.begin() as session:
        one = existing(session, service.caller, distillation_id)
        if not stored.pause(session, distillation_id) and one.state != "PAUSED":
            raise over(one, "pause")
        return view(session, service, existing(session, service.caller, distillation_id))


@router.post("/distill/{distillation_id}/resume", responses={200: example({**EXAMPLE, "state": "QUEUED"}), **answers(Conflict)})
def resume_distillation(distillation_id: Id, service: Service) -> DistillationView:
    """Let a paused distillation go on. One that is not paused stays as it is; one that has ended cannot go on (409)."""
    with service.store.begin() as session:
        one = existing(session, service.caller, distillation_id)
        if not stored.resume(session, distillation_id) and one.state not in ("QUEUED", "RUNNING"):
            raise over(one, "resume")
        return view(session, service, existing(session, service.caller, distillation_id))


def over(one: Distillation, verb: str) -> Conflict:
    """Of what nothing trains any more."""
    how = "is trained, and its result is being written" if one.state in active(Distillation) else f"has ended ({one.state})"
    return Conflict(f"distillation {one.id} {how}; there is nothing to {verb}")


def named_search(session: Session, caller: Caller, policy: str | dict[str, Any]) -> Search | None:
    """The search whose winner `policy` asks for, None when it asks for none. Raises InvalidInput."""
    if not isinstance(policy, dict) or "search" not in policy:
        return None
    search_id = policy["search"]
    if len(policy) > 1 or not isinstance(search_id, str):
        raise invalid([FieldError("/policy", 'the winner of a search is named by {"search": id} and nothing else')])
    search = searches.get(session, search_id, owner=caller.sees) if is_id(search_id) else None
    if search is None:
        raise invalid([FieldError("/policy/search", f"there is no search {search_id!r}; GET /searches lists them")])
    return search


def winner(session: Session, search: Search) -> dict[str, Any]:
    """The policy that a search found best. Raises InvalidInput when it has none (yet)."""
    if search.state != "SUCCEEDED":
        message = f"search {search.id} is {search.state}; its winner is known once it has SUCCEEDED"
        raise invalid([FieldError("/policy/search", message)])
    result = results.of_search(session, search.id)
    if result is None:
        raise invalid([FieldError("/policy/search", f"search {search.id} has no winner: none of its candidates could be measured")])
    return result.policy


def left_to(search: Search, wanted: DistillRequest) -> dict[str, Any]:
    """What a request that trains with a search's winner leaves to that search."""
    if wanted.pair is not None:
        return {}
    known = {
        "pair": search.spec.get("pair"),
        "dataset": search.dataset,
        "teacher": TeacherChoice(**search.spec["teacher"]),
        "student": StudentChoice(**search.spec["student"]),
    }
    left = {name: value for name, value in known.items() if getattr(wanted, name) is None}
    return left | {"resize": wanted.resize or bool(search.spec.get("resize"))}


def called(policy: Policy, asked: str | dict[str, Any]) -> str:
    """What to call a policy in a name: as it was asked for, or by its formula."""
    if isinstance(asked, dict) and "search" in asked:
        return "searched policy"
    return asked[:60] if isinstance(asked, str) else formula(policy)[:60]


def existing(session: Session, caller: Caller, distillation_id: str) -> Distillation:
    """Raises NotFound, also for what is somebody else's."""
    one = stored.get(session, distillation_id, owner=caller.sees) if is_id(distillation_id) else None
    if one is None:
        raise NotFound(f"there is no distillation {distillation_id}; GET /distill lists them")
    return one


def view(session: Session, service: Running, one: Distillation, seen: Fleet | None = None) -> DistillationView:
    """seen: the fleet, where the caller has looked already."""
    result = results.of_distillation(session, one.id) if one.state == "SUCCEEDED" else None
    return DistillationView(
        id=one.id,
        name=one.name,
        notes=one.notes,
        tags=labels.of(session, one),
        state=cast(State, one.state),
        reason=one.reason,
        created_at=one.created_at,
        updated_at=one.updated_at,
        dataset=one.dataset,
        teacher=one.spec["teacher"]["detector"],
        student=one.spec["student"]["detector"],
        formula=formula(from_json(one.spec["policy"])),
        priority=one.priority,
        device_memory_gib=one.device_memory_gib,
        waiting=of_subject(seen or fleet(session, service), one.state, one.id) if one.state in active(Distillation) else None,
        progress=progress(session, one, result.ap if result else None),
        result_id=result.id if result else None,
        cloned_from=one.cloned_from,
        spec=one.spec,
    )


def progress(session: Session, one: Distillation, ap: float | None) -> Progress:
    """Where a distillation stands: what its trainer says, and its AP at the end."""
    job = jobs.of_distillation(session, one.id)
    said: Mapping[str, Any] = (job.progress if job else None) or {}
    total = int(said.get("total") or one.spec["recipe"]["iterations"])
    finished = one.state == "SUCCEEDED"
    fraction = 1.0 if finished else share(said)
    running = one.state == "RUNNING"
    elapsed = seconds_between(job.started_at, db_now(session)) if running and job else None
    return Progress(
        step={"QUEUED": "waiting", "PAUSED": "paused", "RUNNING": "training", "SUCCEEDED": "done"}.get(one.state, "stopped"),
        done=total if finished else int(said.get("done") or 0),
        total=total,
        fraction=round(fraction, 4),
        best_ap=ap if ap is not None else said.get("best_ap"),
        seconds_left=seconds_left(fraction, elapsed),
        message=str(said.get("message") or "") if running else "",
    )
