"""What an attempt leaves is published before its job succeeds, what a job needs is fetched: in a folder, and in a bucket of S3."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from detkds_core import datasets
from detkds_core.store import Store, jobs
from detkds_core.store.artifacts import Artifacts, file_sha256
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


TELLS_WHAT_IT_SEES = """
found = spec["dataset"]
images = {split: len(json.load(open(found[split]["annotations"]))["images"]) for split in ("train", "val")}
leave("result.json", {"paths": [found[split][kind] for split in ("train", "val") for kind in ("annotations", "images")],
                      "files": [len(os.listdir(found[split]["images"])) for split in ("train", "val")], "images": images})
"""


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], datasets.Dataset]:
    """The built-in dataset `digits`, small enough for a test."""
    few = partial(datasets.digits, train=3, val=2, size=64)
    monkeypatch.setattr(datasets, "digits", few)
    return few


def on_dataset(data: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "evaluate", "candidates": [], "dataset": data}


def test_a_builtin_dataset_is_had_on_a_machine_that_does_not_see_the_one_of_the_api(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, few_digits: Callable[[Path], datasets.Dataset]
) -> None:
    """Two containers, each with a cache of its own, as with S3: the paths of the specification lead nowhere here."""
    asked = few_digits(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere")
    ours = settings(TELLS_WHAT_IT_SEES)
    for _ in range(2):  # made, then found
        claim = claimed(database, on_dataset(asked.to_json()))
        assert run_claim(database, claim, ours) == "succeeded"
        result = row(database, claim)["result"]
        assert (result["images"], result["files"]) == ({"train": 3, "val": 2}, [3, 2])
        assert all(Path(path).is_relative_to(tmp_path / "cache") for path in result["paths"])


def test_a_dataset_that_this_machine_sees_is_taken_where_it_lies(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, few_digits: Callable[[Path], datasets.Dataset]
) -> None:
    """A shared cache; and what a user registered, of which the worker knows nothing."""
    shared = few_digits(tmp_path / "shared").to_json()
    for data in (shared, {**shared, "name": "mine", "digest": "of a user"}):
        ours, claim = settings(TELLS_WHAT_IT_SEES), claimed(database, on_dataset(data))
        assert run_claim(database, claim, ours) == "succeeded"
        expected = [data[split][kind] for split in ("train", "val") for kind in ("annotations", "images")]
        assert row(database, claim)["result"]["paths"] == expected
    assert not (tmp_path / "cache").exists()


def test_a_registered_dataset_whose_annotations_are_others_by_now_is_refused(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, few_digits: Callable[[Path], datasets.Dataset]
) -> None:
    """Figures of both would carry one digest."""
    data = {**few_digits(tmp_path / "shared").to_json(), "name": "mine", "digest": "of a user"}
    data["train"]["sha256"] = file_sha256(Path(data["train"]["annotations"]))
    ours, claim = settings(TELLS_WHAT_IT_SEES), claimed(database, on_dataset(data))
    assert run_claim(database, claim, ours) == "succeeded"
    for change, why in (
        (lambda path: path.write_text("{}"), "have changed since they were checked"),
        (Path.unlink, "cannot be read on this"),
    ):
        change(Path(data["train"]["annotations"]))
        claim = claimed(database, on_dataset(data))
        assert run_claim(database, claim, ours) == "failed"
        failure = row(database, claim)["failure"]
        assert failure["kind"] == "bad_data"
        assert why in failure["detail"]


def test_a_builtin_dataset_that_comes_out_differently_here_is_refused(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, few_digits: Callable[[Path], datasets.Dataset]
) -> None:
    """Another release of the generator, or of what it draws with: figures of two such machines must not meet in one search."""
    asked = few_digits(tmp_path / "elsewhere").to_json() | {"digest": "d" * 64}  # what lies there is not it either
    claim = claimed(database, on_dataset(asked))
    assert run_claim(database, claim, settings(TELLS_WHAT_IT_SEES)) == "failed"
    after = row(database, claim)
    made = few_digits(tmp_path / "cache").digest
    assert (after["state"], after["failure"]["kind"]) == ("FAILED", "bad_data")
    assert f"expected 'digits' with digest {'d' * 64}, this machine makes one with {made}" in after["failure"]["detail"]


def test_a_builtin_dataset_that_cannot_be_made_here_says_what_is_missing(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    split = {"annotations": str(tmp_path / "none/train.json"), "images": str(tmp_path / "none/train")}
    claim = claimed(database, on_dataset({"name": "trees", "classes": ["Tree"], "digest": "d", "train": split, "val": split}))
    assert run_claim(database, claim, settings(TELLS_WHAT_IT_SEES)) == "failed"
    failure = row(database, claim)["failure"]
    assert failure["kind"] == "bad_data"
    assert "pip install --no-deps deepforest" in failure["detail"]


@pytest.mark.parametrize(("days", "left"), [(14, {"b"}), (31, {"a", "b"}), (0, {"a", "b"})])
def test_what_is_kept_for_later_jobs_goes_when_none_has_used_it(
    database: Store, settings: Callable[..., Settings], tmp_path: Path, days: float, left: set[str]
) -> None:
    """Trunks of forks, tokens, copies of checkpoints: `a` was used 30 days ago, `b` 13 days ago. Datasets and scenes stay."""
    folders = [tmp_path / "cache/forks", tmp_path / "cache/tokens", tmp_path / "scratch/checkpoints"]
    stays = tmp_path / "cache/digits-v3/dataset.json"
    for path, age in [(folder / name, age) for folder in folders for name, age in (("a", 30), ("b", 13))] + [(stays, 400)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        os.utime(path, (time.time() - age * 86_400,) * 2)
    claim = claimed(database, {"kind": "evaluate", "candidates": []})
    assert run_claim(database, claim, settings('leave("result.json", {})', keep_cache_days=days)) == "succeeded"
    assert [{path.name for path in folder.iterdir()} for folder in folders] == [left] * 3
    assert stays.exists()


def test_a_copy_of_a_checkpoint_that_jobs_use_stays(tmp_path: Path, settings: Callable[..., Settings], s3_place: str) -> None:
    artifacts, ours = Artifacts(s3_place), settings("")
    sha256, _ = artifacts.put("j/1/student.safetensors", b"weights")
    copy = publishing.local_checkpoint(artifacts, "j/1/student.safetensors", sha256, ours)
    os.utime(copy, (0, 0))
    assert publishing.local_checkpoint(artifacts, "j/1/student.safetensors", sha256, ours) == copy
    publishing.sweep_kept(ours)
    assert copy.read_bytes() == b"weights"
