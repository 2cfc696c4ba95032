"""All services with their artifacts in S3: what one process trained is downloaded from another, and none of it lies in a folder."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from . import harness
from .harness import until


@pytest.fixture
def service(tmp_path: Path, s3_place: str):
    port = harness.free_port()
    environment = harness.environment(tmp_path, DETKDS_ARTIFACTS=s3_place)
    command = [sys.executable, "-m", "detkds_client", "serve", "--home", str(tmp_path), "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        api = harness.Api(f"http://127.0.0.1:{port}")
        api.get("/health", 120)
        yield api
    finally:
        process.terminate()
        process.wait(60)


def test_a_student_is_published_to_s3_and_downloaded_from_there(service: harness.Api, tmp_path: Path) -> None:
    roots = tmp_path / "roots"
    paths = harness.small_dataset(roots / "shapes")
    service.register("shapes", paths)
    teacher = {"detector": "gfl_r18w32_fpn32", "checkpoint": str(harness.named_checkpoint(roots / "teacher.safetensors"))}
    wanted = {"dataset": "shapes", "teacher": teacher, "student": {"detector": "gfl_r18w8_fpn32"}, "policy": "pkd"}
    one = service.call("POST", "/distill", {**wanted, "recipe": {"iterations": 2, "batch": 2, "image_size": 64}})["id"]
    done = until(lambda: (found := service.get(f"/distill/{one}"))["state"] == "SUCCEEDED" and found, 120, "the student")
    content = service.text(f"/results/{done['result_id']}/checkpoint")
    assert content == "a student"
    with service.opener.open(f"{service.url}/results/{done['result_id']}/checkpoint?format=pth", timeout=30) as answer:
        assert answer.headers["ETag"] == f'"{hashlib.sha256(b"a student").hexdigest()}"'
    assert not (tmp_path / "artifacts").exists()
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
