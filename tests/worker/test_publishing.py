"""What an attempt leaves is published before its job succeeds, what a job needs is fetched: in a folder, and in a bucket of S3."""

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkds_core.store import Store, jobs
from detkds_core.store.artifacts import Artifacts
from detkds_worker import publishing, supervise
from detkds_worker.settings import Settings
from detkds_worker.supervise import attempt_folder, run_claim

from .test_processes import until
from .test_supervise import claimed, row

DISTILL = {"kind": "distill", "policy": {"terms": []}, "seed": 0}
STUDENT = b"weights of a student" * 1000
DIGEST = hashlib.sha256(STUDENT).hexdigest()
TRAINER = f"""
open(out + "/student.safetensors", "wb").write({STUDENT[:20]!r} * 1000)
leave("student.pth", "pickled")
leave("half.part", "not whole")
leave("../resume.pt", "state at the end")
leave("result.json", {{"checkpoint": "student.safetensors", "sha256": "{DIGEST}", "student": {{"ap": 3.5}}}})
"""
STATE = 'leave("../teacher.json", "[]"); leave("../resume.pt", "state at step 7")\n'


def content(artifacts: Artifacts, name: str) -> bytes:
    return b"".join(artifacts.read(name))


def test_a_job_succeeds_with_the_digests_of_what_is_published(
    database: Store, settings: Callable[..., Settings], artifacts_place: str
) -> None:
    ours, artifacts = settings(TRAINER, artifacts=artifacts_place), Artifacts(artifacts_place)
    claim = claimed(database, DISTILL)
    artifacts.put(f"{claim.job_id}/1/resume.pt", b"state at step 7")
    assert run_claim(database, claim, ours) == "succeeded"
    result = row(database, claim)["result"]
    assert result["files"]["student.safetensors"] == {"sha256": DIGEST, "bytes": len(STUDENT)}
    names = ["pid", "result.json", "spec.json", "student.pth", "student.safetensors", "trainer.log"]
    assert sorted(result["files"]) == names
    assert artifacts.names(claim.job_id) == [f"{claim.job_id}/1/{name}" for name in names], "no state: nobody will resume from it"
    for name, stored in result["files"].items():
        artifacts.check(f"{claim.job_id}/1/{name}", stored["sha256"])
    assert content(artifacts, f"{claim.job_id}/1/student.safetensors") == STUDENT
    assert not (ours.home / "scratch" / claim.job_id).exists()


def test_a_checkpoint_that_is_not_what_the_trainer_wrote_fails_the_attempt(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings(TRAINER + 'open(out + "/student.safetensors", "ab").write(b"rot")')
    claim = claimed(database, DISTILL)
    assert run_claim(database, claim, ours) == "failed"
    after = row(database, claim)
    found = hashlib.sha256(STUDENT + b"rot").hexdigest()
    assert (after["state"], after["failure"]["kind"]) == ("QUEUED", "bug")
    assert f"expected SHA-256 {DIGEST}, found {found}" in after["failure"]["detail"]
    assert f"{claim.job_id}/1/student.safetensors" not in Artifacts(ours.artifacts).names(claim.job_id)


def test_another_machine_goes_on_from_the_state_that_an_attempt_left(
    database: Store, settings: Callable[..., Settings], artifacts_place: str, tmp_path: Path
) -> None:
    first = settings(STATE + "raise RuntimeError('the GPU fell off')", artifacts=artifacts_place)
    claim = claimed(database, DISTILL)
    assert run_claim(database, claim, first) == "failed"
    log = content(Artifacts(artifacts_place), f"{claim.job_id}/1/trainer.log")
    assert b"the GPU fell off" in log
    with database.begin() as session:
        again = jobs.claim(session, worker="elsewhere", lease_seconds=30, job_id=claim.job_id)
    script = (
        'leave("result.json", {"from": spec["resume_from"], "state": open(spec["resume_from"]).read(), "beside": os.listdir(out + "/..")})'
    )
    elsewhere = settings(script, artifacts=artifacts_place).model_copy(update={"home": tmp_path / "elsewhere"})
    assert run_claim(database, again, elsewhere) == "succeeded"
    result = row(database, claim)["result"]
    assert result["state"] == "state at step 7"
    assert result["from"] == str(tmp_path / "elsewhere" / "scratch" / claim.job_id / "resume.pt")
    assert sorted(result["beside"]) == ["2", "resume.pt", "teacher.json"]


def test_a_state_of_this_machine_is_not_replaced_by_an_older_one(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings('leave("result.json", {"state": open(spec["resume_from"]).read()})')
    claim = claimed(database, DISTILL)
    Artifacts(ours.artifacts).put(f"{claim.job_id}/1/resume.pt", b"published two minutes ago")
    folder = attempt_folder(ours, claim)
    (folder.parent / "resume.pt").write_text("written just before the kill")
    assert run_claim(database, claim, ours) == "succeeded"
    assert row(database, claim)["result"]["state"] == "written just before the kill"


def test_the_state_is_published_while_a_distillation_trains(
    database: Store, settings: Callable[..., Settings], artifacts_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RESUME_SECONDS", 0.05)
    ours, artifacts = settings(STATE + "time.sleep(60)", artifacts=artifacts_place), Artifacts(artifacts_place)
    claim = claimed(database, DISTILL)
    name = f"{claim.job_id}/1/resume.pt"
    assert run_claim(database, claim, ours, draining=lambda: name in artifacts.names(claim.job_id)) == "released"
    assert content(artifacts, name) == b"state at step 7"
    assert content(artifacts, f"{claim.job_id}/1/teacher.json") == b"[]"


def test_artifacts_that_are_away_for_longer_than_a_lease_cost_nothing(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "AGAIN_SECONDS", 0.1)
    (tmp_path / "artifacts").write_text("a file, where a folder should be")
    ours = settings(TRAINER, lease_seconds=0.9)
    claim = claimed(database, DISTILL, lease_seconds=0.9)
    back = threading.Timer(4.0, (tmp_path / "artifacts").unlink)
    back.start()
    assert run_claim(database, claim, ours) == "succeeded"
    back.join()
    assert content(Artifacts(ours.artifacts), f"{claim.job_id}/1/student.safetensors") == STUDENT


def test_artifacts_that_stay_away_give_the_job_back(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "PUBLISH_SECONDS", 0.0)
    (tmp_path / "artifacts").write_text("a file, where a folder should be")
    ours = settings(TRAINER)
    claim = claimed(database, DISTILL)
    assert run_claim(database, claim, ours) == "failed"
    after = row(database, claim)
    assert (after["state"], after["failure"]["kind"]) == ("QUEUED", "lost")
    assert "could not be published" in after["failure"]["detail"]
    assert (ours.home / "scratch" / claim.job_id / "resume.pt").read_text() == "state at the end"


def test_cancelling_ends_the_wait_for_artifacts(database: Store, settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file, where a folder should be")
    ours = settings(TRAINER, lease_seconds=0.9)
    claim = claimed(database, DISTILL, lease_seconds=30)

    def cancel() -> None:
        with database.begin() as session:
            jobs.cancel(session, claim.job_id)

    after_training = threading.Timer(3.0, cancel)
    after_training.start()
    assert run_claim(database, claim, ours) == "lost"
    after_training.join()
    assert row(database, claim)["state"] == "CANCELLED"
    assert until(lambda: all(one.name != "artifacts" for one in threading.enumerate())), "nobody goes on trying"


def referring(artifacts: Artifacts) -> dict[str, Any]:
    stored = artifacts.put("checkpoints/c/weights.safetensors", b"a teacher")
    teacher = {"detector": "big", "checkpoint": f"artifact:checkpoints/c/weights.safetensors#{stored.sha256}"}
    return {"kind": "evaluate", "teacher": teacher, "student": {"detector": "small", "checkpoint": None}}


def test_a_stored_checkpoint_is_a_file_of_the_trainers_machine(
    database: Store, settings: Callable[..., Settings], artifacts_place: str
) -> None:
    spec = referring(Artifacts(artifacts_place))
    path = 'spec["teacher"]["checkpoint"]'
    ours = settings(f'leave("result.json", {{"path": {path}, "content": open({path}).read()}})', artifacts=artifacts_place)
    for _ in range(2):
        claim = claimed(database, spec)
        assert run_claim(database, claim, ours) == "succeeded"
        result = row(database, claim)["result"]
        assert result["content"] == "a teacher"
        if artifacts_place.startswith("s3:"):  # kept for the next job of the search, and made again when it is damaged
            assert Path(result["path"]).parent == ours.home / "scratch" / "checkpoints"
            Path(result["path"]).write_bytes(b"damaged")


def test_a_damaged_and_a_lost_checkpoint_fail_their_job_and_are_told(
    database: Store, settings: Callable[..., Settings], artifacts_place: str
) -> None:
    artifacts = Artifacts(artifacts_place)
    spec = referring(artifacts)
    stored = spec["teacher"]["checkpoint"].partition("#")[2]
    ours = settings('leave("result.json", {})', artifacts=artifacts_place)
    damaged = artifacts.put("checkpoints/c/weights.safetensors", b"another teacher").sha256
    for found in (f"SHA-256 {stored}, found {damaged}", f"a file with SHA-256 {stored}, found none"):
        claim = claimed(database, spec)
        assert run_claim(database, claim, ours) == "failed"
        after = row(database, claim)
        assert (after["state"], after["failure"]["kind"]) == ("FAILED", "bad_data")
        assert f"checkpoints/c/weights.safetensors: expected {found}" in after["failure"]["detail"]
        artifacts.remove("checkpoints/c")


def test_scratch_of_jobs_that_ended_elsewhere_is_removed(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings('leave("result.json", {})')
    cancelled, waits = claimed(database), claimed(database)
    for claim in (cancelled, waits):
        attempt_folder(ours, claim)
    with database.begin() as session:
        jobs.cancel(session, cancelled.job_id)
    assert run_claim(database, claimed(database), ours) == "succeeded"
    assert [path.name for path in (ours.home / "scratch").iterdir()] == [waits.job_id]
    shutil.rmtree(ours.home / "scratch")
    assert until(lambda: run_claim(database, waits, ours) == "succeeded")
