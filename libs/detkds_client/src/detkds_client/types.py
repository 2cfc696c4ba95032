"""What the service answers, as types. The documents are plain JSON; `GET /openapi.json` has the whole of them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

SearchState = Literal["QUEUED", "RUNNING", "CONFIRMING", "SUCCEEDED", "FAILED", "CANCELLED", "PAUSED"]
DistillationState = Literal["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD", "PAUSED"]


class DetectorChoice(TypedDict, total=False):
    """A detector by its catalogue name, and its weights: a built-in checkpoint's name, or a path on the service's machine."""

    detector: str
    checkpoint: str | None


class Progress(TypedDict):
    """Where a search or a distillation stands. best_ap: percent; seconds_left: None while nothing can be said."""

    step: str
    done: int
    total: int
    fraction: float
    best_ap: float | None
    seconds_left: float | None
    message: str


class Best(TypedDict):
    """The best candidate so far, on the selection images, after the student iterations of its rung."""

    index: int
    ap: float
    rung: int | None
    formula: str
    policy: dict[str, Any]


class Search(TypedDict):
    """A search. spec: what it was asked to do, whole. waiting: why none of its jobs runs, None while one does."""

    id: str
    name: str
    notes: str
    tags: list[str]
    state: SearchState
    reason: str | None
    created_at: str
    updated_at: str
    dataset: str
    teacher: str
    student: str
    priority: int
    device_memory_gib: int | None
    waiting: str | None
    progress: Progress
    best: Best | None
    result_id: str | None
    cloned_from: str | None
    spec: dict[str, Any]


class Rung(TypedDict):
    """One measurement of a candidate: at `rung` iterations, with the seed of a replicate. ap, lenient_ap: percent, None where none is."""

    number: int
    rung: int
    replicate: int
    seed: int
    state: str
    ap: float | None
    lenient_ap: float | None
    iterations: int | None
    seconds: float | None


class Candidate(TypedDict):
    """One policy of a search and what it was worth. ap: percent, None while it is not measured or could not be.

    parents: indices of those that it was made of. rungs: every measurement.
    """

    index: int
    state: str
    stage: str
    island: str | None
    operator: str
    parents: list[int]
    formula: str
    policy: dict[str, Any]
    ap: float | None
    ap50: float | None
    ap75: float | None
    seconds: float | None
    resolved: str | None
    rung: int | None
    rungs: list[Rung]
    iterations: int | None
    rejected: dict[str, Any] | None
    same_as: int | None
    audit: bool
    look: dict[str, Any] | None
    failure: dict[str, Any] | None


class Distillation(TypedDict):
    """The training of one student under one policy. waiting: why it is not running, None while it is."""

    id: str
    name: str
    notes: str
    tags: list[str]
    state: DistillationState
    reason: str | None
    created_at: str
    updated_at: str
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


class Result(TypedDict):
    """What came out, with its evidence: of a search (`kind` "search") or of a distillation ("distill")."""

    id: str
    kind: str
    created_at: str
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


class ResultPolicy(TypedDict):
    """The policy of a result. config: the MMDetection configuration (Python) of its student, None where it has no checkpoint."""

    policy: dict[str, Any]
    formula: str
    config: str | None


class Cost(TypedDict):
    """What a result took, all its trainings together. trunk_seconds, trunk_iterations: of these, on what its candidates fork from."""

    seconds: float | None
    iterations: int | None
    trunk_seconds: float | None
    trunk_iterations: int | None


class Compared(TypedDict):
    """A result in a comparison. interval: of its AP (percent), None for one seed; seeds, images: what the AP rests on."""

    id: str
    kind: str
    name: str
    created_at: str
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


class Group(TypedDict):
    """Results that were measured on the same images. why: what keeps them from the first group."""

    dataset: str
    dataset_digest: str
    images: int | None
    why: str | None
    results: list[Compared]


class Comparison(TypedDict):
    """Results in groups: those of two groups say nothing about one another."""

    groups: list[Group]


class CheckProgress(TypedDict):
    """How far the check of a dataset is: of `total` images `done`; of an annotation file, 0 of 0."""

    done: int
    total: int
    message: str


class FieldError(TypedDict):
    """What is wrong with one field. pointer: a JSON pointer into what was asked for; empty: with all of it."""

    pointer: str
    message: str


class Dataset(TypedDict):
    """A dataset that searches may name once it is READY; what is wrong with one that is REFUSED."""

    name: str
    builtin: bool
    state: Literal["CHECKING", "READY", "REFUSED"]
    classes: list[str]
    train_images: int | None
    val_images: int | None
    digest: str | None
    progress: CheckProgress | None
    problems: list[FieldError]


class Checkpoint(TypedDict):
    """Weights that somebody brought. READY: `id` may stand for a detector's checkpoint. digest, bytes: of the file as it is stored."""

    id: str
    name: str
    state: Literal["UPLOADING", "READY", "REFUSED"]
    reason: str | None
    created_at: str
    updated_at: str
    size: int
    sha256: str
    part_bytes: int
    parts: int
    received: list[int] | None
    classes: list[str] | None
    detector: str | None
    digest: str | None
    bytes: int | None


class NamedPolicy(TypedDict):
    """A policy with a name: no distillation, a hand-designed distiller, or a published search's."""

    name: str
    formula: str
    policy: dict[str, Any]
    source: str
    note: str
    expected_use: str
    pair: str
    schedule: str
    pairs: list[str]


class Place(TypedDict):
    """A transform of a term, such as `attention`, and the names that some legal formula has there."""

    place: str
    names: list[str]


class KnowledgeSpace(TypedDict):
    """What a search chooses from for one knowledge. transforms: innermost first. lacking: regions the pair cannot look at, and why.

    combinations: of all names; legal: those that no rule refuses; formulas: the different losses among these; refused: how many each
    rule refuses.
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


class SearchSpace(TypedDict):
    """The search space of a pair. excluded: knowledge that it cannot exchange, and why."""

    pair: str | None
    teacher: str
    student: str
    classes: int
    images_per_batch: int
    resize: bool
    space: Literal["published", "full"]
    weights: Literal["balanced", "published"]
    knowledge: list[KnowledgeSpace]
    excluded: dict[str, str]


class HeldJob(TypedDict):
    """What a device is held by; all None where it is somebody else's."""

    id: str | None
    owner: str | None
    search_id: str | None
    distillation_id: str | None
    name: str | None


class Worker(TypedDict):
    """A worker. device: the UUID of its GPU (several joined by "+"), or "cpu"; memory_gib: of the smallest GPU."""

    id: str
    name: str
    device: str
    gpus: int
    memory_gib: int
    state: Literal["idle", "busy", "draining", "drained", "lost"]
    present: bool
    disk_low: bool
    job: HeldJob | None


class Job(TypedDict):
    """Work for one trainer. waiting: why it is not running, None while it is.

    attempt: the one that runs, or ran last; logs: the attempts whose log can be read.
    """

    id: str
    kind: Literal["evaluate", "confirm", "distill"]
    state: str
    waiting: str | None
    owner: str
    search_id: str | None
    distillation_id: str | None
    priority: int
    devices: int
    device_memory_gib: int | None
    attempt: int
    max_attempts: int
    worker: str | None
    device: str | None
    progress: dict[str, Any] | None
    failure: dict[str, Any] | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    logs: list[int]


class LogPart(TypedDict):
    """A part of a log. offset, next_offset, size: bytes; ended: nothing more is written to it."""

    job_id: str
    attempt: int
    offset: int
    next_offset: int
    size: int
    ended: bool
    text: str


class Key(TypedDict):
    """An API key, without its secret."""

    id: str
    name: str
    owner: str
    scope: Literal["read", "run", "admin"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class NewKey(Key):
    """A key that was just made, with its secret: the only time that it is shown."""

    secret: str
