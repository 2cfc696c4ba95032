"""Artifacts in a folder and in a bucket of a real S3 server: whole or not at all, and never other content than was stored."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from detkds_core.store.artifacts import UNFINISHED, Artifacts, DamagedError, LostError, Stored, UnreachableError, filled_folder, place_of

CONTENT = bytes(range(256)) * 9000  # 2.3 MB: more than one piece


@pytest.fixture
def artifacts(artifacts_place: str) -> Artifacts:
    return Artifacts(artifacts_place)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def overwrite(artifacts: Artifacts, name: str, content: bytes) -> None:
    """As a disk or a careless person would: past the module."""
    artifacts.files.pipe_file(f"{artifacts.root}/{name}", content)


def test_a_published_file_is_read_back_whole_and_in_parts(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "student").write_bytes(CONTENT)
    assert artifacts.publish(tmp_path / "student", "job/1/student.safetensors") == Stored(digest(CONTENT), len(CONTENT))
    name = "job/1/student.safetensors"
    assert artifacts.size(name) == len(CONTENT)
    assert b"".join(artifacts.read(name)) == CONTENT
    assert b"".join(artifacts.read(name, 250, 260)) == CONTENT[250:260]
    assert b"".join(artifacts.read(name, len(CONTENT) - 3)) == CONTENT[-3:]
    artifacts.check(name, digest(CONTENT))
    artifacts.fetch(name, tmp_path / "deep" / "copy", digest(CONTENT))
    assert (tmp_path / "deep" / "copy").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_name_is_replaced_as_a_whole_and_nothing_unfinished_stays(artifacts: Artifacts) -> None:
    artifacts.put("job/1/trainer.log", b"first")
    artifacts.put("job/1/trainer.log", b"second")
    artifacts.put("job/2/trainer.log", b"third")
    assert b"".join(artifacts.read("job/1/trainer.log")) == b"second"
    assert artifacts.names("job") == ["job/1/trainer.log", "job/2/trainer.log"]
    assert artifacts.names(UNFINISHED) == []
    artifacts.remove("job/1")
    artifacts.remove("job/1")
    assert artifacts.names("job") == ["job/2/trainer.log"]
    assert artifacts.names("never") == []


def test_a_file_that_is_not_what_was_trained_is_not_published(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "student").write_bytes(b"bit rot")
    with pytest.raises(DamagedError, match=f"job/1/s: expected SHA-256 {'0' * 64}, found {digest(b'bit rot')}"):
        artifacts.publish(tmp_path / "student", "job/1/s", sha256="0" * 64)
    assert artifacts.names("job") == artifacts.names(UNFINISHED) == []


def test_a_lost_and_a_damaged_file_are_told_with_both_digests(artifacts: Artifacts, tmp_path: Path) -> None:
    stored = artifacts.put("job/1/s", b"as stored")
    artifacts.check("job/1/s", stored.sha256)
    overwrite(artifacts, "job/1/s", b"as it is!")  # as long as before
    told = f"job/1/s: expected SHA-256 {stored.sha256}, found {digest(b'as it is!')}"
    with pytest.raises(DamagedError, match=told):
        artifacts.check("job/1/s", stored.sha256)
    with pytest.raises(DamagedError, match=told):
        artifacts.fetch("job/1/s", tmp_path / "copy", stored.sha256)
    assert not (tmp_path / "copy").exists()
    artifacts.remove("job/1/s")
    with pytest.raises(LostError, match=f"job/1/s: expected a file with SHA-256 {stored.sha256}, found none"):
        artifacts.check("job/1/s", stored.sha256)
    with pytest.raises(LostError, match=f"expected a file with SHA-256 {stored.sha256}, found none"):
        artifacts.fetch("job/1/s", tmp_path / "copy", stored.sha256)
    with pytest.raises(LostError, match="job/1/s: no such file"):
        artifacts.size("job/1/s")


def test_two_writers_of_one_name_leave_one_whole_file(artifacts: Artifacts) -> None:
    contents = [bytes([letter]) * 300_000 for letter in b"ab"]
    threads = [threading.Thread(target=artifacts.put, args=("job/1/s", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(artifacts.read("job/1/s")) in contents


def test_what_a_killed_writer_left_is_swept_after_a_day(artifacts: Artifacts) -> None:
    overwrite(artifacts, f"{UNFINISHED}/half", b"half a file")
    assert artifacts.sweep() == 0
    assert artifacts.sweep(days=-1) == 1
    assert artifacts.names(UNFINISHED) == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "job/../../x", "job//x", "job/./x", "job\\..\\x"])
def test_a_name_that_leads_out_is_refused(artifacts: Artifacts, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file"):
        artifacts.put(name, b"")
    with pytest.raises(ValueError, match="is not the name of a file"):
        next(artifacts.read(name))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", tmp_path / "artifacts" / "link")
    with pytest.raises(ValueError, match="leads out of the artifacts"):
        Artifacts(str(tmp_path / "artifacts")).size("link")


def test_a_place_that_refuses_is_told_from_a_file_that_is_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UnreachableError, match=r"job/1/s: \w+Error"):
        Artifacts(str(tmp_path / "file")).put("job/1/s", b"")


def test_a_place_is_a_folder_or_s3(tmp_path: Path) -> None:
    assert place_of(None, tmp_path) == place_of("", tmp_path) == str(tmp_path / "artifacts")
    assert place_of(str(tmp_path / "a" / ".." / "b"), tmp_path) == str(tmp_path / "b")
    assert place_of("s3://bucket/prefix/", tmp_path) == "s3://bucket/prefix"
    with pytest.raises(ValueError, match=r"gs://bucket is neither a folder nor s3://bucket/prefix"):
        place_of("gs://bucket", tmp_path)
    with pytest.raises(ValueError, match="names no bucket"):
        place_of("s3://", tmp_path)


def test_a_place_where_nothing_can_be_written_is_told(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.probe()
    assert artifacts.names(UNFINISHED) == []
    (tmp_path / "file").write_text("a file, where a folder should be")
    missing = f"s3://detkds-{os.getpid()}-never-made/artifacts" if artifacts.folder is None else str(tmp_path / "file" / "artifacts")
    with pytest.raises(UnreachableError):
        Artifacts(missing).probe()


def test_room_is_needed_where_trainers_write_when_the_artifacts_are_elsewhere(tmp_path: Path) -> None:
    assert filled_folder(place_of("/mnt/artifacts", tmp_path), tmp_path) == Path("/mnt/artifacts")
    assert filled_folder(place_of("s3://bucket/prefix", tmp_path), tmp_path) == tmp_path / "scratch"
