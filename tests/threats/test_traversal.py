"""Paths that lead out: in annotations, in links, in every parameter of a path, encoded once, twice and not at all."""

import json
import re
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from detkds_core.evaluation.images import load_image
from detkds_core.store import distillations, jobs, results

SECRET = "the content of a file outside"
STEPS = ["../../secret", "..%2f..%2fsecret", "..%252f..%252fsecret", "%2e%2e/%2e%2e/secret", "....//secret"]
STEPS += ["..\\..\\secret", "/etc/passwd", "%00", "."]


def raw_get(url: str, target: str) -> bytes:
    """A request whose path no client has tidied up."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1", "replace"))
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer


@pytest.fixture(scope="module")
def secret(service) -> Path:
    """A file beside the folders that may be read."""
    path = service.roots.parent / "secret"
    path.write_text(SECRET)
    (service.settings.home / "secret").write_text(SECRET)
    return path


@pytest.mark.parametrize("step", STEPS)
def test_no_parameter_of_any_path_leads_anywhere(service, secret, step) -> None:
    """Every operation of the description that has a parameter in its path."""
    document = service.http.get("/openapi.json").json()
    paths = [path for path in document["paths"] if "{" in path]
    assert len(paths) > 10
    for path in paths:
        for spelled in {step, quote(step, safe=""), quote(quote(step, safe=""), safe="")}:
            answer = raw_get(service.url, re.sub(r"\{[^}]+\}", lambda _: spelled, path))  # noqa: B023
            status = int(answer.split(b" ", 2)[1])
            assert status in (307, 400, 404, 405, 422), (path, spelled, answer)
            assert SECRET.encode() not in answer
            assert b"root:" not in answer


PAGES = ["..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "..%252fapp.py", "%5c..%5capp.py"]


@pytest.mark.parametrize("step", PAGES)
def test_the_pages_are_all_that_is_under_pages(service, step) -> None:
    answer = raw_get(service.url, f"/pages/{step}")
    assert answer.split(b" ", 2)[1] in (b"400", b"404")
    assert b"import" not in answer


FILE_NAMES = ["../secret.png", "/etc/hostname.png", "a/../../secret.png", "..\\secret.png", "./../secret.png", "\u0000.png"]
FILE_NAMES += ["~/secret.png", "%2e%2e/secret.png"]


@pytest.mark.parametrize("file_name", FILE_NAMES)
def test_a_file_name_in_annotations_stays_below_its_folder(service, written, refused_dataset, tmp_path_factory, file_name) -> None:
    folder = tmp_path_factory.mktemp("attack", numbered=True)
    place = service.roots / folder.name
    train, val = written(place / "train", 3, shade=20), written(place / "val", 3, shade=30)
    content = json.loads((place / "train/coco.json").read_text())
    content["images"][0]["file_name"] = file_name
    (place / "train/coco.json").write_text(json.dumps(content))
    detail = refused_dataset(service.http, {"name": "attack", "train": train, "val": val})
    assert any(words in detail for words in ("leaves the image folder", "control characters", "there is no such file")), detail


def test_links_out_of_a_root_lead_nowhere(service, written, refused, refused_dataset, secret) -> None:
    place = service.roots / "links"
    train, val = written(place / "train", 3, shade=50), written(place / "val", 3, shade=55)
    (service.roots / "out").symlink_to(secret.parent)
    for field, path in (("annotations", service.roots / "out/secret"), ("images", service.roots / "out")):
        detail = refused(service.http.post("/datasets", json={"name": "links", "train": {**train, field: str(path)}, "val": val}))
        assert "leads outside the registered folders" in detail
    image = place / "train/images/001.png"
    image.unlink()
    image.symlink_to(secret)
    detail = refused_dataset(service.http, {"name": "links", "train": train, "val": val})
    assert "is a link out of the image folder" in detail
    checkpoint = service.roots / "link.safetensors"
    checkpoint.symlink_to(secret)
    body = {"detector": "gfl_r18w32_fpn32", "checkpoint": str(checkpoint)}
    asked = {"dataset": "shapes", "teacher": body, "student": {"detector": "gfl_r18w8_fpn32"}, "candidates": 12}
    told = f"leads outside the registered folders {service.roots} (DETKDS_DATA_ROOTS); or send the file: detkds checkpoints upload "
    assert f"{told}link.safetensors" in refused(service.http.post("/searches", json=asked))


def test_a_name_that_no_file_can_have_is_that_of_none(service, wanted, refused) -> None:
    long = "0" * 900
    for name, told in ((long, "is not a checkpoint"), (f"/{long}", "outside"), (f"{service.roots}/{long}", "does not exist")):
        body = {**wanted, "teacher": {**wanted["teacher"], "checkpoint": name}}
        assert told in refused(service.http.post("/searches", json=body))


def test_what_a_dataset_became_after_it_was_checked_leads_nowhere_either(tmp_path: Path, written) -> None:
    """A trainer reads annotations and images again, long after they were looked at."""
    written(tmp_path / "outside", 1)
    written(tmp_path / "data", 1)
    folder = tmp_path / "data" / "images"
    assert load_image(folder, "001.png", 64).shape == (64, 64, 3)
    (folder / "link.png").symlink_to(tmp_path / "outside/images/001.png")
    for name in ("../../outside/images/001.png", str(tmp_path / "outside/images/001.png"), "link.png"):
        with pytest.raises(FileNotFoundError, match="leads out of the image folder"):
            load_image(folder, name, 64)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "job/../../../secret", "link"])
def test_an_artifact_is_below_the_artifacts_whatever_a_result_says(service, secret, name) -> None:
    """A result's file names come from a trainer."""
    folder = Path(service.settings.artifacts_place)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "link" and not (folder / "link").exists():
        (folder / "link").symlink_to(secret)
    with service.store.begin() as session:
        one = distillations.create(session, name="d", spec={}, dataset={"name": "shapes", "digest": ""})
        claim = jobs.claim(session, worker="w", lease_seconds=60, job_id=jobs.of_distillation(session, one.id).id)
        jobs.finish(session, claim, {})
        files = dict.fromkeys(("checkpoint", "checkpoint_pth", "config", "detections"), name)
        rest = {"policy": {"terms": []}, "ap": 1.0, "metrics": {}, "evidence": {}, "environment": {}}
        result = results.create(session, one, artifacts=files, **rest)
        distillations.succeed(session, one.id)
    for path in ("checkpoint", "checkpoint?format=pth", "checkpoint?format=config", "detections"):
        answer = service.http.get(f"/results/{result.id}/{path}")
        assert answer.status_code == 404, path
        assert SECRET not in answer.text
