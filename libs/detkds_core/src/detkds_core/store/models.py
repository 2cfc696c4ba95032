"""The tables. What is true of every row is a constraint here, not a hope elsewhere.

No relationships: every query is written out in the module of its domain. Times are the database's, in UTC; ids are UUIDv7 text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, synonym

from .clock import Moment, db_time
from .ids import new_id
from .vocabulary import (
    CandidateState,
    CheckpointState,
    ConfirmationState,
    DatasetState,
    DistillationState,
    JobKind,
    JobState,
    ResultKind,
    Role,
    Scope,
    SearchState,
    TrialState,
)

ID = String(36)
NAME = String(200)
WORD = String(20)
DEVICE = String(400)  # the UUIDs of eight GPUs


class Base(DeclarativeBase):
    # Every constraint has a name: a migration can only change what it can name, and SQLite gives none itself.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # none_as_null: a document that is not there is NULL, never the JSON text null.
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        datetime: Moment(),
    }


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    """A CHECK that a column holds one of these words."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


def list_indexes(*filters: str, sorts: Sequence[str] = ("created_at", "updated_at", "finished_at")) -> Iterable[Index]:
    """The indexes of a list: every order with and without an owner, every filter under the order that a list has by default."""
    for sort in sorts:
        yield Index(None, sort, "id")
        yield Index(None, "owner", sort, "id")
    for column in filters:
        yield Index(None, column, "created_at", "id")


class Times:
    """When a row came to be, and when it last changed."""

    created_at: Mapped[datetime] = mapped_column(default=db_time())
    updated_at: Mapped[datetime] = mapped_column(default=db_time())


class Dataset(Times, Base):
    """A dataset that somebody registered: for all, once it is READY. data: its JSON (`Dataset.to_json`), counts and digest included; NULL
    until then.

    owner: who asked for it; "": the operator, or it is from before owners were kept. asked: {"train", "val"}, each {"annotations",
    "images"}: the paths that are checked; NULL: it is from before checks were kept.
    attempts, progress: of the check; problems: why it is REFUSED, each {"pointer", "message"}.
    """

    __tablename__ = "datasets"
    __table_args__ = (
        one_of("state", get_args(DatasetState)),
        CheckConstraint("(state = 'READY') = (digest IS NOT NULL)", name="ready_has_digest"),
        CheckConstraint("(state = 'READY') = (data IS NOT NULL)", name="ready_has_data"),
        CheckConstraint("(state = 'REFUSED') = (problems IS NOT NULL)", name="refused_has_problems"),
        Index(None, "state", "updated_at"),
    )

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    id = synonym("name")
    owner: Mapped[str] = mapped_column(NAME, default="")
    state: Mapped[str] = mapped_column(WORD, default="CHECKING")
    asked: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    progress: Mapped[dict[str, Any] | None]
    problems: Mapped[list[Any] | None]
    digest: Mapped[str | None] = mapped_column(String(128))
    data: Mapped[dict[str, Any] | None]


class Labelled:
    """What people call a search or a distillation and write beside it, and what it was asked to do.

    teacher, student: detectors of its spec. request: the body that asked for it, whole; NULL: it is from before requests were kept.
    cloned_from, of the same table: whose request it repeats.
    """

    name: Mapped[str] = mapped_column(NAME)
    notes: Mapped[str] = mapped_column(Text, default="")
    teacher: Mapped[str] = mapped_column(NAME, default="")
    student: Mapped[str] = mapped_column(NAME, default="")
    request: Mapped[dict[str, Any] | None]


class Search(Labelled, Times, Base):
    """A search for the policy of a pair. spec: all that decides its course. errors: steps of the evolver that failed in a row.

    priority, device_memory_gib: of its jobs. spent: student iterations that its candidates were trained for so far, added up as they are
    measured; inherited: those of them that the search spent which it continues.
    """

    __tablename__ = "searches"
    __table_args__ = (
        one_of("state", get_args(SearchState)),
        UniqueConstraint("owner", "idempotency_key"),
        *list_indexes("state", "dataset", "teacher", "student", "algorithm"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(NAME, default="")  # not NULL: NULLs are never equal, and one key could be used twice
    idempotency_key: Mapped[str | None] = mapped_column(NAME)
    state: Mapped[str] = mapped_column(WORD, default="QUEUED")
    reason: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    dataset: Mapped[str] = mapped_column(NAME)
    dataset_digest: Mapped[str] = mapped_column(String(128))
    algorithm: Mapped[str] = mapped_column(WORD, default="")
    cloned_from: Mapped[str | None] = mapped_column(ID, ForeignKey("searches.id"))
    errors: Mapped[int] = mapped_column(Integer, default=0)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    device_memory_gib: Mapped[int | None]
    spent: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    inherited: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Distillation(Labelled, Times, Base):
    """The training of one student under one policy. Its state mirrors its job's; SUCCEEDED comes together with its result."""

    __tablename__ = "distillations"
    __table_args__ = (
        one_of("state", get_args(DistillationState)),
        UniqueConstraint("owner", "idempotency_key"),
        *list_indexes("state", "dataset", "teacher", "student"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(NAME, default="")
    idempotency_key: Mapped[str | None] = mapped_column(NAME)
    state: Mapped[str] = mapped_column(WORD, default="QUEUED")
    reason: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    dataset: Mapped[str] = mapped_column(NAME)
    dataset_digest: Mapped[str] = mapped_column(String(128))
    search_id: Mapped[str | None] = mapped_column(ID, ForeignKey("searches.id"), index=True)  # whose policy it trains with
    cloned_from: Mapped[str | None] = mapped_column(ID, ForeignKey("distillations.id"))
    priority: Mapped[int] = mapped_column(Integer, default=0)
    device_memory_gib: Mapped[int | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Job(Times, Base):
    """Work for one trainer. A worker holds it by (id, attempt, lease_token); collected: its outcome has been counted, once.

    attempt: the number of the one that runs, or ran last; no two have the same. released: those that were given back, or paused.

    owner: of its search or distillation. devices, device_memory_gib: GPUs that it needs, and the memory that each must have (NULL: any
    device will do). device: what its worker trains it on, the UUID of a GPU (several joined by "+") or "cpu".
    """

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("kind", get_args(JobKind)),
        one_of("state", get_args(JobState)),
        CheckConstraint("attempt >= 0 AND attempt <= max_attempts", name="attempts"),
        CheckConstraint("(state = 'RUNNING') = (lease_token IS NOT NULL)", name="running_has_lease"),
        CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="lease_expires"),
        CheckConstraint("(state = 'SUCCEEDED') = (result IS NOT NULL)", name="succeeded_has_result"),
        *list_indexes("search_id", "state", sorts=("created_at",)),
        Index(None, "state", "priority", "created_at", "id"),
        Index(None, "state", "lease_expires_at"),
        Index(None, "owner", "started_at"),
        Index(None, "search_id", "collected"),
        Index(None, "distillation_id", "collected"),
        Index(None, "pruned", "finished_at"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(WORD)
    state: Mapped[str] = mapped_column(WORD, default="QUEUED")
    priority: Mapped[int] = mapped_column(Integer, default=0)
    spec: Mapped[dict[str, Any]]
    search_id: Mapped[str | None] = mapped_column(ID, ForeignKey("searches.id", ondelete="CASCADE"))
    distillation_id: Mapped[str | None] = mapped_column(ID, ForeignKey("distillations.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=3)
    released: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str] = mapped_column(NAME, default="")
    devices: Mapped[int] = mapped_column(Integer, default=1)
    device_memory_gib: Mapped[int | None]
    worker: Mapped[str | None] = mapped_column(NAME)
    device: Mapped[str | None] = mapped_column(DEVICE)
    lease_token: Mapped[str | None] = mapped_column(ID)
    lease_expires_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    failure: Mapped[dict[str, Any] | None]
    collected: Mapped[bool] = mapped_column(default=False)
    pruned: Mapped[bool] = mapped_column(default=False)  # its files are gone: it ended without a result, long ago
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Candidate(Times, Base):
    """A proposed policy, and what is known of it.

    ap: on the selection images at the highest rung that it was measured at, the mean over its seeds there (percent); NULL where it is not
    known. rung: the iterations of that rung. resolved: the policy with the weights that its first training found. rejected: {"gate",
    "detail"} that refused it. same_as: the earlier candidate that does the same. iterations, seconds: all that it cost.
    """

    __tablename__ = "candidates"
    __table_args__ = (
        UniqueConstraint("search_id", "index"),
        UniqueConstraint("search_id", "policy_key"),
        one_of("state", get_args(CandidateState)),
        CheckConstraint("(state = 'MEASURED') = (ap IS NOT NULL)", name="measured_has_ap"),
        CheckConstraint("(state = 'INFEASIBLE') = (failure IS NOT NULL)", name="infeasible_has_failure"),
        Index(None, "search_id", "state", "rung", "ap"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    search_id: Mapped[str] = mapped_column(ID, ForeignKey("searches.id", ondelete="CASCADE"))
    index: Mapped[int] = mapped_column(Integer)
    policy: Mapped[dict[str, Any]]
    policy_key: Mapped[str] = mapped_column(String(64))  # SHA-256 of the canonical JSON: Postgres indexes at most 2,704 bytes
    stage: Mapped[str] = mapped_column(WORD)
    island: Mapped[str | None] = mapped_column(WORD)
    operator: Mapped[str] = mapped_column(WORD)
    parents: Mapped[list[Any]]
    audit: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str] = mapped_column(WORD, default="PROPOSED")
    ap: Mapped[float | None]
    ap50: Mapped[float | None]
    ap75: Mapped[float | None]
    images: Mapped[int | None]
    rung: Mapped[int | None]
    iterations: Mapped[int | None]
    seconds: Mapped[float | None]
    failure: Mapped[dict[str, Any] | None]
    rejected: Mapped[dict[str, Any] | None]
    same_as: Mapped[int | None]
    resolved: Mapped[dict[str, Any] | None]
    look: Mapped[dict[str, Any] | None]


class Trial(Times, Base):
    """One measurement of one candidate: at a rung (iterations), with the seed of a replicate, as a decision of the search asked for.

    number: of the decision (`evolution.Job.index`); the candidates of one decision are trained together. ap, lenient_ap: percent, on the
    selection images. job_id: the latest job that measures it.
    """

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("search_id", "number", "candidate"),
        Index(None, "search_id", "candidate", "number"),
        one_of("state", get_args(TrialState)),
        CheckConstraint("(state = 'INFEASIBLE') = (failure IS NOT NULL)", name="infeasible_has_failure"),
        CheckConstraint("state <> 'MEASURED' OR ap IS NOT NULL", name="measured_has_ap"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    search_id: Mapped[str] = mapped_column(ID, ForeignKey("searches.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    candidate: Mapped[int] = mapped_column(Integer)
    rung: Mapped[int] = mapped_column(Integer)
    replicate: Mapped[int] = mapped_column(Integer)
    seed: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(WORD, default="PROPOSED")
    job_id: Mapped[str | None] = mapped_column(ID, ForeignKey("jobs.id"), index=True)
    ap: Mapped[float | None]
    ap50: Mapped[float | None]
    ap75: Mapped[float | None]
    lenient_ap: Mapped[float | None]
    images: Mapped[int | None]
    iterations: Mapped[int | None]
    seconds: Mapped[float | None]
    failure: Mapped[dict[str, Any] | None]
    rejected: Mapped[dict[str, Any] | None]
    same_as: Mapped[int | None]
    sketch: Mapped[list[Any] | None]
    ratio: Mapped[float | None]


class Decision(Base):
    """The ledger of a search: what was decided and what was told, in order, as text that is compared byte for byte. Only ever appended."""

    __tablename__ = "ledger"

    search_id: Mapped[str] = mapped_column(ID, ForeignKey("searches.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    event: Mapped[str] = mapped_column(Text)


class Confirmation(Times, Base):
    """One policy measured again with one fresh seed on the report images."""

    __tablename__ = "confirmations"
    __table_args__ = (
        UniqueConstraint("search_id", "entrant", "seed"),
        one_of("state", get_args(ConfirmationState)),
        one_of("role", get_args(Role)),
        CheckConstraint("(state = 'MEASURED') = (ap IS NOT NULL)", name="measured_has_ap"),
        CheckConstraint("(state = 'INFEASIBLE') = (failure IS NOT NULL)", name="infeasible_has_failure"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    search_id: Mapped[str] = mapped_column(ID, ForeignKey("searches.id", ondelete="CASCADE"))
    entrant: Mapped[int] = mapped_column(Integer)  # number of the policy within the confirmation
    candidate: Mapped[int | None] = mapped_column(Integer)  # its index in the search; NULL: it was not measured there
    name: Mapped[str] = mapped_column(NAME)
    role: Mapped[Role] = mapped_column(WORD)
    policy: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(WORD, default="PROPOSED")
    job_id: Mapped[str | None] = mapped_column(ID, ForeignKey("jobs.id"), index=True)
    ap: Mapped[float | None]
    ap50: Mapped[float | None]
    ap75: Mapped[float | None]
    images: Mapped[int | None]
    iterations: Mapped[int | None]
    seconds: Mapped[float | None]
    failure: Mapped[dict[str, Any] | None]


class Result(Base):
    """What came out of a search or of a distillation, once each. ap: in percent, on the report images.

    metrics: figures and verdict; evidence: seeds, images, versions, cost; artifacts: paths below the artifacts folder.
    """

    __tablename__ = "results"
    __table_args__ = (
        one_of("kind", get_args(ResultKind)),
        UniqueConstraint("search_id"),
        UniqueConstraint("distillation_id"),
        CheckConstraint(
            "(kind = 'search' AND search_id IS NOT NULL AND distillation_id IS NULL)"
            " OR (kind = 'distill' AND distillation_id IS NOT NULL AND search_id IS NULL)",
            name="one_origin",
        ),
        *list_indexes("kind", "dataset", "teacher", "student", sorts=("created_at", "ap")),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(NAME, default="")
    kind: Mapped[str] = mapped_column(WORD)
    search_id: Mapped[str | None] = mapped_column(ID, ForeignKey("searches.id"))
    distillation_id: Mapped[str | None] = mapped_column(ID, ForeignKey("distillations.id"))
    name: Mapped[str] = mapped_column(NAME)
    dataset: Mapped[str] = mapped_column(NAME)
    dataset_digest: Mapped[str] = mapped_column(String(128))
    teacher: Mapped[str] = mapped_column(NAME, default="")
    student: Mapped[str] = mapped_column(NAME, default="")
    policy: Mapped[dict[str, Any]]
    ap: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    evidence: Mapped[dict[str, Any]]
    artifacts: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=db_time())


class Checkpoint(Times, Base):
    """Weights of a teacher or a student that somebody brought. size, sha256: of the file as it was sent, in bytes and hexadecimal.

    detector, wanted_classes: what the sender said of it. classes, digest, bytes: of the safetensors file that was made of it
    (`checkpoints/<id>/weights.safetensors` among the artifacts); NULL until it is READY.
    """

    __tablename__ = "checkpoints"
    __table_args__ = (
        one_of("state", get_args(CheckpointState)),
        CheckConstraint("(state = 'READY') = (digest IS NOT NULL)", name="ready_has_digest"),
        CheckConstraint("(state = 'REFUSED') = (reason IS NOT NULL)", name="refused_has_reason"),
        Index(None, "created_at", "id"),
        Index(None, "owner", "created_at", "id"),
        Index(None, "state", "updated_at"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(NAME, default="")
    name: Mapped[str] = mapped_column(NAME)
    state: Mapped[str] = mapped_column(WORD, default="UPLOADING")
    reason: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    detector: Mapped[str | None] = mapped_column(NAME)
    wanted_classes: Mapped[list[Any] | None]
    classes: Mapped[list[Any] | None]
    digest: Mapped[str | None] = mapped_column(String(64))
    bytes: Mapped[int | None] = mapped_column(BigInteger)


class Event(Base):
    """Something that happened to a search, a job, a distillation or a checkpoint, in the order of ids."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "subject_id", "id"), {"sqlite_autoincrement": True})  # an id that was deleted never comes again

    # SQLite gives numbers only to a column whose type is INTEGER to the letter.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    topic: Mapped[str] = mapped_column(WORD)
    subject_id: Mapped[str] = mapped_column(ID)
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=db_time())


class ApiKey(Base):
    """Who may do what, and until when. digest: SHA-256 of the secret, which is nowhere. owner: whose searches and results it sees."""

    __tablename__ = "api_keys"
    __table_args__ = (one_of("scope", get_args(Scope)), UniqueConstraint("digest"), Index(None, "created_at", "id"))

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(NAME)
    owner: Mapped[str] = mapped_column(NAME)
    scope: Mapped[str] = mapped_column(WORD)
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_time())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Worker(Base):
    """A worker that is there, until it is not heard of any more; one that drains is remembered beyond that.

    device: as a job's; gpus: how many these are (0: a CPU), memory_gib: of the smallest. draining: it takes no new job, also when it was
    started anew under its name. disk_low: it takes none because the file system for files of jobs is nearly full. gpu_use: its GPUs at
    the last heartbeat, each {"uuid", "name", "memory_bytes", "memory_used_bytes", "use" (0 to 1, or null)}.
    """

    __tablename__ = "workers"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(NAME)
    device: Mapped[str] = mapped_column(DEVICE, default="cpu")
    gpus: Mapped[int] = mapped_column(Integer, default=0)
    memory_gib: Mapped[int] = mapped_column(Integer, default=0)
    draining: Mapped[bool] = mapped_column(default=False)
    disk_low: Mapped[bool] = mapped_column(default=False)
    expires_at: Mapped[datetime]
    gpu_use: Mapped[list[Any] | None]


class Tally(Base):
    """How often something has happened, of each kind. It only grows, whatever becomes of the rows that it happened to."""

    __tablename__ = "tallies"

    name: Mapped[str] = mapped_column(WORD, primary_key=True)
    kind: Mapped[str] = mapped_column(WORD, primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


class Lease(Base):
    """A duty that one process at a time has, such as driving the searches."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    holder: Mapped[str] = mapped_column(NAME)
    expires_at: Mapped[datetime]
