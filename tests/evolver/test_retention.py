"""Files of jobs without a result go after their days, and nothing else does: in a folder, and in a bucket of S3."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from detkds_core.store import Store, checkpoints, distillations, jobs, results
from detkds_core.store.artifacts import Artifacts
from detkds_core.store.clock import db_time
from detkds_core.store.models import Checkpoint, Job
from detkds_evolver.main import Evolver
from detkds_evolver.retention import AT_ONCE, UPLOAD_DAYS, Retention
from detkds_evolver.settings import Settings

from .worker import DATASET

DAY = 86_400.0


def ended(store: Store, artifacts: Artifacts, *, days: float, state: str = "FAILED", kind: str = "evaluate", **more: Any) -> str:
    """A job with two files that ended so many days ago."""
    with store.begin() as session:
        job = jobs.enqueue(session, kind=kind, spec={}, **more)
    finish(store, job.id, days=days, state=state)
    for name in ("1/trainer.log", "1/resume.pt"):
        artifacts.put(f"{job.id}/{name}", b"content")
    return job.id


def finish(store: Store, job_id: str, *, days: float, state: str) -> None:
    with store.begin() as session:
        claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=job_id)
        if state == "SUCCEEDED":
            jobs.finish(session, claim, {"student": {"ap": 1.0}})
        elif state == "FAILED":
            jobs.fail(session, claim, kind="bad_data", detail="no image")
        elif state == "CANCELLED":
            jobs.cancel(session, job_id)
        session.execute(update(Job).where(Job.id == job_id, Job.finished_at.is_not(None)).values(finished_at=db_time(-days * DAY)))


def collected(store: Store, job_id: str) -> None:
    with store.begin() as session:
        assert jobs.collect(session, jobs.get(session, job_id))


def distilled(store: Store, artifacts: Artifacts, *, days: float, result: bool) -> str:
    with store.begin() as session:
        one = distillations.create(session, name="mine", spec={"policy": {"terms": []}}, dataset=DATASET)
        job = jobs.of_distillation(session, one.id)
    finish(store, job.id, days=days, state="SUCCEEDED")
    artifacts.put(f"{job.id}/1/student.safetensors", b"weights")
    if result:
        with store.begin() as session:
            jobs.collect(session, job)
            distillations.succeed(session, one.id)
            content: dict[str, Any] = {name: {} for name in ("policy", "metrics", "evidence", "artifacts", "environment")}
            results.create(session, one, ap=1.0, **content)
    return str(job.id)


def test_files_of_old_jobs_without_a_result_go_and_others_stay(store: Store, artifacts_place: str) -> None:
    artifacts = Artifacts(artifacts_place)
    old = [ended(store, artifacts, days=31, state=state) for state in ("FAILED", "CANCELLED", "SUCCEEDED")]
    collected(store, old[2])
    kept = [
        ended(store, artifacts, days=29),
        ended(store, artifacts, days=31, state="RUNNING"),
        ended(store, artifacts, days=31, state="SUCCEEDED"),  # not counted yet
        distilled(store, artifacts, days=31, result=True),
        distilled(store, artifacts, days=31, result=False),  # becomes a result when the evolver comes by
    ]
    Retention(store, artifacts, 0.0).step()
    assert all(artifacts.names(job) for job in (*old, *kept)), "0 keeps everything"
    one = Retention(store, artifacts, 30.0)
    one.step()
    assert [artifacts.names(job) for job in old] == [[], [], []]
    assert all(artifacts.names(job) for job in kept)
    with store.read() as session:
        assert jobs.prunable(session, days=30, limit=100) == []
        assert {job: jobs.get(session, job).pruned for job in (*old, *kept)} == {job: job in old for job in (*old, *kept)}


def test_a_step_is_small(sqlite: Store, tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    old = [ended(sqlite, artifacts, days=100 - number) for number in range(AT_ONCE + 2)]
    one = Retention(sqlite, artifacts, 30.0)
    one.step()
    assert [bool(artifacts.names(job)) for job in old] == [False] * AT_ONCE + [True] * 2, "the oldest first"
    one.step()
    assert not any(artifacts.names(job) for job in old)


def test_artifacts_that_are_away_are_left_alone_for_a_while(sqlite: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = ended(sqlite, Artifacts(str(tmp_path / "artifacts")), days=31)
    (tmp_path / "file").write_text("a file, where a folder should be")
    one = Retention(sqlite, Artifacts(str(tmp_path / "file" / "artifacts")), 30.0)
    one.step()
    one.step()
    assert caplog.text.count("old files stay for now") == 1
    with sqlite.read() as session:
        assert jobs.prunable(session, days=30, limit=9) == [job], "tried again later"


def test_uploads_that_nobody_finishes_are_given_up(store: Store, tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    with store.begin() as session:
        old, new = (checkpoints.create(session, name=name, size=3, sha256="0" * 64).id for name in ("old", "new"))
        moment = db_time(-(UPLOAD_DAYS + 1) * DAY)
        session.execute(update(Checkpoint).where(Checkpoint.id == old).values(updated_at=moment))
    for one in (old, new):
        artifacts.put(f"uploads/{one}/000000", b"abc")
    Retention(store, artifacts, 0.0).step()
    with store.read() as session:
        found = {one: checkpoints.get(session, one) for one in (old, new)}
    assert (found[old].state, found[old].reason) == ("REFUSED", "no part came for 7 days; upload it again")
    assert found[new].state == "UPLOADING"
    assert (artifacts.names(f"uploads/{old}"), artifacts.names(f"uploads/{new}")) == ([], [f"uploads/{new}/000000"])


def test_the_reaper_removes_them(sqlite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKDS_KEEP_DAYS", "30")
    settings = Settings(home=tmp_path, reap_seconds=0.001)
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    job = ended(sqlite, artifacts, days=31)
    Evolver(sqlite, settings).round()
    assert artifacts.names(job) == []
    monkeypatch.setenv("DETKDS_KEEP_DAYS", "-1")
    with pytest.raises(ValueError, match="keep_days"):
        Settings()


def test_files_of_deleted_checkpoints_go(store: Store, tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    with store.begin() as session:
        *kept, gone = [checkpoints.create(session, name="c", size=3, sha256="0" * 64).id for _ in range(3)]
        assert checkpoints.delete(session, gone)
    kept.append("0198a3e0-77aa-7b11-8d2f-0c6c2c7e9f10")  # of another installation, or of before a backup was restored
    for one in (*kept, gone):
        artifacts.put(f"uploads/{one}/000000", b"abc")
        artifacts.put(f"checkpoints/{one}/weights.safetensors", b"abc")
    Retention(store, artifacts, 0.0).step()
    assert artifacts.names("uploads") == sorted(f"uploads/{one}/000000" for one in kept)
    assert artifacts.names("checkpoints") == sorted(f"checkpoints/{one}/weights.safetensors" for one in kept)


def test_parts_of_what_is_decided_go_and_its_weights_stay(store: Store, artifacts_place: str) -> None:
    """The API was killed after the decision, or could not reach the artifacts: nobody completes these again."""
    artifacts = Artifacts(artifacts_place)
    with store.begin() as session:
        ready, refused, awaited = (checkpoints.create(session, name="c", size=3, sha256="0" * 64).id for _ in range(3))
        assert checkpoints.ready(session, ready, digest="0" * 64, size=3, classes=["a"], detector=None)
        assert checkpoints.refuse(session, refused, "no weights")
    elsewhere = "0198a3e0-77aa-7b11-8d2f-0c6c2c7e9f10"  # another installation's
    for one in (ready, refused, awaited, elsewhere):
        artifacts.put(f"uploads/{one}/000000", b"abc")
    artifacts.put(f"checkpoints/{ready}/weights.safetensors", b"abc")
    Retention(store, artifacts, 0.0).step()
    assert artifacts.names("uploads") == sorted(f"uploads/{one}/000000" for one in (awaited, elsewhere))
    assert artifacts.names("checkpoints") == [f"checkpoints/{ready}/weights.safetensors"]
