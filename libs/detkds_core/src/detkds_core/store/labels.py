"""What people find searches, distillations and results by: tags that they give, and the words that a result's policy is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Select, String, delete, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from . import events
from .clock import db_time
from .models import ID, Base, Distillation, Result, Search

LABEL = String(40)


class Label:
    """A word of a row of another table, at most once each."""

    label: Mapped[str] = mapped_column(LABEL, primary_key=True)


class SearchTag(Label, Base):
    """A tag of a search."""

    __tablename__ = "search_tags"

    subject_id: Mapped[str] = mapped_column(ID, ForeignKey("searches.id", ondelete="CASCADE"), primary_key=True, index=True)


class DistillationTag(Label, Base):
    """A tag of a distillation."""

    __tablename__ = "distillation_tags"

    subject_id: Mapped[str] = mapped_column(ID, ForeignKey("distillations.id", ondelete="CASCADE"), primary_key=True, index=True)


class ResultWord(Label, Base):
    """Knowledge, transform, distance or distiller of a result's policy."""

    __tablename__ = "result_words"

    subject_id: Mapped[str] = mapped_column(ID, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True, index=True)


TABLES: Mapping[type[Any], type[Any]] = {Search: SearchTag, Distillation: DistillationTag, Result: ResultWord}
TOPICS: Mapping[type[Any], str] = {Search: "search", Distillation: "distillation"}


def give(session: Session, subject: Search | Distillation | Result, labels: Iterable[str]) -> None:
    """Give a row its labels in place of those that it has."""
    table = TABLES[type(subject)]
    session.execute(delete(table).where(table.subject_id == subject.id))
    session.add_all(table(subject_id=subject.id, label=label) for label in sorted(set(labels)))
    session.flush()


def of(session: Session, subject: Search | Distillation | Result) -> list[str]:
    """The labels of a row, by the alphabet."""
    table = TABLES[type(subject)]
    return sorted(session.scalars(select(table.label).where(table.subject_id == subject.id)))


def of_each(session: Session, table: type[Any], ids: Sequence[str]) -> dict[str, list[str]]:
    """The labels of these rows of a table, by their ids."""
    found: dict[str, list[str]] = {one: [] for one in ids}
    labels = TABLES[table]
    for subject, label in session.execute(select(labels.subject_id, labels.label).where(labels.subject_id.in_(ids)).order_by(labels.label)):
        found[subject].append(label)
    return {subject: sorted(mine) for subject, mine in found.items()}


def words(policy: Mapping[str, Any]) -> set[str]:
    """The names in a policy's JSON: knowledge, transforms, distance, distillers.

    >>> sorted(words({"terms": [{"knowledge": "global", "transforms": ["none", "catt"], "distance": "l2"}]}))
    ['catt', 'global', 'l2']
    """
    terms: Sequence[Mapping[str, Any]] = policy.get("terms") or ()
    found = {str(one["name"]) for one in policy.get("distillers") or ()}
    for term in terms:
        found |= {term.get("knowledge", ""), term.get("distance", ""), *term.get("transforms", ())}
    return {word for word in found if word not in ("", "none")}


def relabel(
    session: Session,
    subject: Search | Distillation,
    *,
    name: str | None = None,
    notes: str | None = None,
    tags: Sequence[str] | None = None,
) -> None:
    """Change what people call a search or a distillation and write beside it; None: as it is. Its result takes its name."""
    table = type(subject)
    values = {key: value for key, value in (("name", name), ("notes", notes)) if value is not None}
    if not values and tags is None:
        return
    session.execute(update(table).where(table.id == subject.id).values(**values, updated_at=db_time()))
    if tags is not None:
        give(session, subject, tags)
    if name is not None:
        origin = Result.search_id if table is Search else Result.distillation_id
        session.execute(update(Result).where(origin == subject.id).values(name=name))
    events.append(session, TOPICS[table], subject.id, "relabelled", {**values, **({} if tags is None else {"tags": sorted(set(tags))})})
    session.refresh(subject)


def having(table: type[Any], label: str) -> Select[tuple[str]]:
    """The ids of the rows that have a label."""
    return select(table.subject_id).where(table.label == label)


def matching(table: type[Any], asked: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """The conditions of a list's filters; those that are None ask for nothing.

    `tag`: has it, or of a result: what it comes from has it; `term`: its policy has this word; `name`: contains it, in whatever case;
    `ap_at_least`, `ap_at_most`; any other: the column is equal to it.
    """
    found: list[ColumnElement[bool]] = []
    for name, value in asked.items():
        if value is None:
            continue
        if name == "tag" and table is Result:
            found.append(or_(Result.search_id.in_(having(SearchTag, value)), Result.distillation_id.in_(having(DistillationTag, value))))
        elif name in ("tag", "term"):
            found.append(table.id.in_(having(TABLES[table], value)))
        elif name == "name":
            found.append(table.name.icontains(value, autoescape=True))
        elif name == "ap_at_least":
            found.append(table.ap >= value)
        elif name == "ap_at_most":
            found.append(table.ap <= value)
        else:
            found.append(getattr(table, name) == value)
    return found
