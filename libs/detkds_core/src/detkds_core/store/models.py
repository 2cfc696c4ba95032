"""The tables: one class each. Ids are UUIDv7 text, times are the database's own in UTC, specifications and figures are JSON."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, DateTime, ForeignKey, Index, String, Text, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JOB_STATES = ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST", "DEAD")
SEARCH_STATES = ("QUEUED", "RUNNING", "CONFIRMING", "SUCCEEDED", "FAILED", "CANCELLED")
DISTILLATION_STATES = ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD")
CANDIDATE_STATES = ("PROPOSED", "MEASURED", "INFEASIBLE")
JOB_KINDS = ("evaluate", "confirm", "distill")


class Utc(TypeDecorator[datetime]):
    """A moment in UTC with its time zone in Python, also over SQLite, which keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON(none_as_null=True), list[int]: JSON, datetime: Utc}  # noqa: RUF012 (SQLAlchemy's way)


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=f"{column}_known")


class Dataset(Base):
    """A user's dataset that passed every check. data: `detkds_core.datasets.Dataset.to_json`."""

    __tablename__ = "datasets"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Search(Base):
    """A search. spec: all that decides its course; problems: errors in a row while it was driven."""

    __tablename__ = "searches"
    __table_args__ = (one_of("state", SEARCH_STATES), Index("searches_by_time", "created_at", "id"), Index("searches_by_state", "state", "id"))
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    dataset: Mapped[dict[str, Any]]
    summary: Mapped[dict[str, Any] | None]
    problems: Mapped[int]
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    owner: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Distillation(Base):
    """The training of one student under one policy; its job does the work."""

    __tablename__ = "distillations"
    __table_args__ = (
        one_of("state", DISTILLATION_STATES),
        Index("distillations_by_time", "created_at", "id"),
        Index("distillations_by_state", "state", "id"),
    )
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    dataset: Mapped[dict[str, Any]]
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    owner: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Job(Base):
    """One piece of work for a trainer. attempt counts claims; the lease token is the right to write.

    purpose: what the job is to its search (`group 3`, `confirm 2`), so that it is enqueued once whatever is repeated.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("state", JOB_STATES),
        one_of("kind", JOB_KINDS),
        UniqueConstraint("search_id", "purpose", name="one_job_a_purpose"),
        UniqueConstraint("distillation_id", name="one_job_a_distillation"),
        Index("jobs_in_queue", "state", "priority", "created_at", "id"),
        Index("jobs_by_lease", "state", "lease_expires_at"),
    )
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(12))
    state: Mapped[str] = mapped_column(String(12))
    spec: Mapped[dict[str, Any]]
    search_id: Mapped[str | None] = mapped_column(ForeignKey("searches.id"), index=True)
    distillation_id: Mapped[str | None] = mapped_column(ForeignKey("distillations.id"))
    purpose: Mapped[str | None] = mapped_column(String(100))
    priority: Mapped[int]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    failure: Mapped[dict[str, Any] | None]
    taken: Mapped[bool]  # the evolver has carried the outcome over to its search or distillation
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Candidate(Base):
    """A policy of a search and what it was worth on the selection images (percent)."""

    __tablename__ = "candidates"
    __table_args__ = (one_of("state", CANDIDATE_STATES), UniqueConstraint("search_id", "canonical", name="no_policy_twice"))
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    index: Mapped[int] = mapped_column("number", primary_key=True, autoincrement=False)  # INDEX is a reserved word
    state: Mapped[str] = mapped_column(String(12))
    policy: Mapped[dict[str, Any]]
    canonical: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(String(12))
    island: Mapped[str | None] = mapped_column(String(20))
    operator: Mapped[str] = mapped_column(String(20))
    parents: Mapped[list[int]]
    ap: Mapped[float | None]
    ap50: Mapped[float | None]
    ap75: Mapped[float | None]
    images: Mapped[int | None]
    iterations: Mapped[int | None]
    seconds: Mapped[float | None]
    failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class Confirmation(Base):
    """One finalist or reference under one fresh seed, on the report images; selection_ap is what the winner is chosen by."""

    __tablename__ = "confirmations"
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    index: Mapped[int] = mapped_column("number", primary_key=True, autoincrement=False)
    seed: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ap: Mapped[float | None]
    ap50: Mapped[float | None]
    ap75: Mapped[float | None]
    selection_ap: Mapped[float | None]
    images: Mapped[int | None]
    seconds: Mapped[float | None]
    failure: Mapped[dict[str, Any] | None]


class Result(Base):
    """What came out of a search or a distillation, with its evidence. artifacts: name -> path below the artifacts folder."""

    __tablename__ = "results"
    __table_args__ = (
        one_of("kind", ("search", "distill")),
        Index("results_by_time", "created_at", "id"),
        UniqueConstraint("search_id", name="one_result_a_search"),
        UniqueConstraint("distillation_id", name="one_result_a_distillation"),
    )
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(12))
    name: Mapped[str] = mapped_column(String(200))
    search_id: Mapped[str | None] = mapped_column(ForeignKey("searches.id"))
    distillation_id: Mapped[str | None] = mapped_column(ForeignKey("distillations.id"))
    dataset: Mapped[str] = mapped_column(String(200))
    formula: Mapped[str | None] = mapped_column(Text)
    policy: Mapped[dict[str, Any] | None]
    ap: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    artifacts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Event(Base):
    """What happened to a search or a distillation, in order."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_subject", "subject_id", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    topic: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str] = mapped_column(String(36))
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class Lease(Base):
    """A right that one process at a time may hold, such as driving the searches."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    expires_at: Mapped[datetime]
