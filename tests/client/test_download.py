"""`detkds results ID --checkpoint`: the student, and what MMDetection needs beside it."""

import pytest

from detkds_core.store import distillations, jobs, results


@pytest.fixture
def result_id(service, wanted):
    """The result of a distillation whose trainer left three files."""
    folder = service.settings.artifacts_folder / "made" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"checkpoint": "student.safetensors", "checkpoint_pth": "student.pth", "config": "student_config.py"}
    for kind, name in files.items():
        (folder / name).write_text(kind)
    body = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}
    one = service.http.post("/distill", json={**body, "policy": "none"}).json()["id"]
    with service.store.begin() as session:
        claim = jobs.claim(session, worker="test", lease_seconds=30, job_id=jobs.of_distillation(session, one).id)
        jobs.finish(session, claim, {})
        artifacts = {kind: f"made/1/{name}" for kind, name in files.items()}
        row = distillations.get(session, one)
        made = results.create(session, row, policy={"terms": []}, ap=1.0, metrics={}, evidence={}, artifacts=artifacts, environment={})
        distillations.succeed(session, one)
        return made.id


def test_a_pth_comes_with_its_configuration(detkds, result_id, tmp_path):
    done = detkds("results", result_id, "--checkpoint", str(tmp_path / "student.pth"))
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"student.pth": "checkpoint_pth", "student.py": "config"}
    assert f"its MMDetection configuration in {tmp_path / 'student.py'}" in done.stdout
    detkds("results", result_id, "--checkpoint", str(tmp_path / "s.safetensors"))
    assert (tmp_path / "s.safetensors").read_text() == "checkpoint"
    assert not (tmp_path / "s.py").exists()


def test_a_folder_that_is_not_there_is_named(detkds, result_id, tmp_path):
    done = detkds("results", result_id, "--checkpoint", str(tmp_path / "nowhere" / "student.pth"))
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'nowhere' / 'student.pth'} cannot be written: No such file or directory\n"
