"""The state machines: what is possible, and that nothing else is."""

import itertools
import re
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError

import detkds_core.store
from detkds_core.store import Store, jobs
from detkds_core.store.ids import new_id
from detkds_core.store.models import Candidate, Checkpoint, Confirmation, Dataset, Distillation, Job, Search, Trial
from detkds_core.store.states import MACHINES, IllegalTransitionError, Move, active, move, move_each, terminal

WAYS = {
    Job: {
        ("QUEUED", "RUNNING"),
        ("QUEUED", "CANCELLED"),
        ("QUEUED", "PAUSED"),
        ("RUNNING", "SUCCEEDED"),
        ("RUNNING", "FAILED"),
        ("RUNNING", "QUEUED"),
        ("RUNNING", "DEAD"),
        ("RUNNING", "LOST"),
        ("RUNNING", "CANCELLED"),
        ("RUNNING", "PAUSED"),
        ("PAUSED", "QUEUED"),
        ("PAUSED", "CANCELLED"),
        ("LOST", "QUEUED"),
        ("LOST", "DEAD"),
    },
    Search: {
        ("QUEUED", "RUNNING"),
        ("QUEUED", "FAILED"),
        ("QUEUED", "CANCELLED"),
        ("RUNNING", "CONFIRMING"),
        ("RUNNING", "FAILED"),
        ("RUNNING", "CANCELLED"),
        ("CONFIRMING", "SUCCEEDED"),
        ("CONFIRMING", "FAILED"),
        ("CONFIRMING", "CANCELLED"),
        ("QUEUED", "PAUSED"),
        ("RUNNING", "PAUSED"),
        ("CONFIRMING", "PAUSED"),
        ("PAUSED", "QUEUED"),
        ("PAUSED", "RUNNING"),
        ("PAUSED", "CONFIRMING"),
        ("PAUSED", "FAILED"),
        ("PAUSED", "CANCELLED"),
    },
    Distillation: {
        ("QUEUED", "RUNNING"),
        ("QUEUED", "CANCELLED"),
        ("RUNNING", "SUCCEEDED"),
        ("RUNNING", "FAILED"),
        ("RUNNING", "DEAD"),
        ("RUNNING", "QUEUED"),
        ("RUNNING", "CANCELLED"),
        ("QUEUED", "PAUSED"),
        ("RUNNING", "PAUSED"),
        ("PAUSED", "QUEUED"),
        ("PAUSED", "CANCELLED"),
    },
    Candidate: {
        ("PROPOSED", "MEASURED"),
        ("PROPOSED", "INFEASIBLE"),
        ("PROPOSED", "REJECTED"),
        ("PROPOSED", "DUPLICATE"),
        ("MEASURED", "MEASURED"),  # at a higher rung
        ("MEASURED", "INFEASIBLE"),
    },
    Trial: {("PROPOSED", "MEASURED"), ("PROPOSED", "INFEASIBLE"), ("PROPOSED", "REJECTED"), ("PROPOSED", "DUPLICATE")},
    Confirmation: {("PROPOSED", "MEASURED"), ("PROPOSED", "INFEASIBLE")},
    Checkpoint: {("UPLOADING", "READY"), ("UPLOADING", "REFUSED")},
    Dataset: {("CHECKING", "READY"), ("CHECKING", "REFUSED"), ("REFUSED", "CHECKING")},
}


def columns(table: type, state: str) -> dict[str, object]:
    """What a row must have to be in a state, by the table's own constraints."""
    if table is Checkpoint:
        decided = {"READY": {"digest": "d"}, "REFUSED": {"reason": "no tensor"}}.get(state, {})
        return {"name": "n", "size": 3, "sha256": "s", **decided}
    if table is Dataset:
        ready = state == "READY"
        return {"digest": "d" if ready else None, "data": {} if ready else None, "problems": [] if state == "REFUSED" else None}
    if table is Job:
        leased = state == "RUNNING"
        return {
            "kind": "evaluate",
            "spec": {},
            "attempt": 1,
            "lease_token": "t" if leased else None,
            "lease_expires_at": text("CURRENT_TIMESTAMP") if leased else None,
            "result": {} if state == "SUCCEEDED" else None,
        }
    return {"name": "n", "spec": {}, "dataset": "d", "dataset_digest": ""}


TOLD = ("lease_token", "lease_expires_at", "result", "digest", "reason", "data", "problems")


def to_reach(table: type, state: str) -> dict[str, object]:
    """What must be set with the transition."""
    return {name: value for name, value in columns(table, state).items() if name in TOLD}


@pytest.mark.parametrize("table", [Job, Search, Distillation, Checkpoint, Dataset])
def test_every_transition_is_tried_and_only_the_known_ones_are_possible(store: Store, table: type) -> None:
    for old, new in itertools.product(MACHINES[table], repeat=2):
        with store.begin() as session:
            identity = new_id()
            session.execute(insert(table).values(id=identity, state=old, **columns(table, old)))
            if (old, new) in WAYS[table]:
                assert move(session, table, table.id == identity, source=old, target=new, **to_reach(table, new)) == [identity]
                assert session.get(table, identity).state == new
            else:
                with pytest.raises(IllegalTransitionError, match=f"{old} -> {new} is no transition"):
                    move(session, table, table.id == identity, source=old, target=new, **to_reach(table, new))
                assert session.get(table, identity).state == old


@pytest.mark.parametrize("table", list(MACHINES))
def test_the_machines_are_what_is_written_here(table: type) -> None:
    assert {(old, new) for old, ways in MACHINES[table].items() for new in ways} == WAYS[table]
    assert all(target in MACHINES[table] for ways in MACHINES[table].values() for target in ways)
    assert active(table) | terminal(table) == set(MACHINES[table])
    assert not active(table) & terminal(table)


def test_a_row_in_another_state_does_not_move(store: Store) -> None:
    with store.begin() as session:
        job = jobs.enqueue(session, kind="evaluate", spec={})
        assert move(session, Job, Job.id == job.id, source="RUNNING", target="QUEUED") == []
        assert jobs.get(session, job.id).state == "QUEUED"


def test_many_rows_move_each_its_own_way_or_none_does(store: Store) -> None:
    with store.begin() as session:
        one, other, third = (jobs.enqueue(session, kind="evaluate", spec={}).id for _ in range(3))
    with store.begin() as session:
        cancelled = Move(one, "QUEUED", "CANCELLED", {"failure": {"kind": "lost"}})
        move_each(session, Job, [cancelled, Move(other, "QUEUED", "PAUSED", {"progress": None}), Move(third, "QUEUED", "PAUSED", {})])
    with store.read() as session:
        assert [jobs.get(session, job).state for job in (one, other, third)] == ["CANCELLED", "PAUSED", "PAUSED"]
        assert (jobs.get(session, one).failure, jobs.get(session, other).failure) == ({"kind": "lost"}, None)
    with pytest.raises(IllegalTransitionError, match="PAUSED -> RUNNING is no transition"), store.begin() as session:
        move_each(session, Job, [Move(third, "PAUSED", "QUEUED", {}), Move(other, "PAUSED", "RUNNING", {})])
    with pytest.raises(RuntimeError, match="1 of 2 rows are not in the state that was read"), store.begin() as session:
        move_each(session, Job, [Move(other, "PAUSED", "QUEUED", {}), Move(one, "PAUSED", "QUEUED", {})])
    with store.read() as session:
        assert [jobs.get(session, job).state for job in (one, other, third)] == ["CANCELLED", "PAUSED", "PAUSED"]


def test_an_unknown_state_is_refused_by_the_machine_and_by_the_database(store: Store) -> None:
    with store.begin() as session, pytest.raises(IllegalTransitionError, match="QUEUED leads to CANCELLED, PAUSED, RUNNING"):
        move(session, Job, source="QUEUED", target="SLEEPING")
    with pytest.raises(IntegrityError), store.begin() as session:
        session.execute(insert(Job).values(id=new_id(), state="SLEEPING", **columns(Job, "QUEUED")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "RUNNING"},  # without a lease
        {"state": "QUEUED", "lease_token": "t"},  # a lease without an end, of a job that does not run
        {"state": "SUCCEEDED"},  # without a result
        {"state": "QUEUED", "result": {}},
        {"state": "QUEUED", "attempt": 4},  # of three
        {"state": "QUEUED", "kind": "play"},
    ],
)
def test_the_database_refuses_a_job_that_cannot_be(store: Store, wrong: dict[str, object]) -> None:
    with pytest.raises(IntegrityError), store.begin() as session:
        session.execute(insert(Job).values(**{"id": new_id(), "kind": "evaluate", "spec": {}, "max_attempts": 3, **wrong}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "MEASURED"},  # without an AP
        {"state": "INFEASIBLE"},  # without a failure
        {"state": "PROPOSED", "failure": {}},
        {"state": "DEAD"},
    ],
)
@pytest.mark.parametrize("table", [Candidate, Trial])
def test_the_database_refuses_a_measurement_that_cannot_be(store: Store, table: type, wrong: dict[str, object]) -> None:
    candidate = {"index": 0, "policy": {}, "policy_key": "k", "stage": "stage1", "operator": "sample", "parents": []}
    trial = {"number": 0, "candidate": 0, "rung": 15, "replicate": 0, "seed": 1}
    with store.begin() as session:
        search = new_id()
        session.execute(insert(Search).values(id=search, **columns(Search, "QUEUED")))
    with pytest.raises(IntegrityError), store.begin() as session:
        session.execute(insert(table).values(**{"search_id": search, **(candidate if table is Candidate else trial), **wrong}))


def test_no_other_module_writes_a_state() -> None:
    """States are born by their column's default and change in `move`; nobody assigns one."""
    folder = Path(detkds_core.store.__file__).parent
    for path in folder.glob("*.py"):
        if path.name not in ("states.py", "models.py"):
            assert not re.search(r"\.values\([^)]*\bstate=|\.state = ", path.read_text()), path.name
