"""Requests on somebody else's behalf: one field takes an address, and follows none that the operator has not allowed."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server of this machine that writes down who asks, and would lead on to the metadata of a cloud's host: (port, paths asked for)."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], asked
    server.shutdown()


def addresses(port: int) -> list[str]:
    """Loopback and a cloud's metadata by every spelling that filters have missed; the listener also leads elsewhere."""
    return [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        f"http://127.0.0.1:{port}/w.safetensors",
        f"http://localhost:{port}/w.safetensors",
        f"http://2130706433:{port}/w.safetensors",
        f"http://0x7f000001:{port}/w.safetensors",
        f"http://0177.0.0.1:{port}/w.safetensors",
        f"http://127.1:{port}/w.safetensors",
        f"http://[::ffff:127.0.0.1]:{port}/w.safetensors",
        f"http://user@127.0.0.1:{port}/w.safetensors",
        f"https://127.0.0.1:{port}/w.safetensors",
        f"ftp://127.0.0.1:{port}/w.safetensors",
        f"HTTP://127.0.0.1:{port}/w.safetensors",
        "http://rebind.example/w.safetensors",  # a name that answers with another address the second time
        "file:///etc/passwd",
        "s3://bucket/w.safetensors",
        "torchvision://resnet50",
        "open-mmlab://detectron2/resnet50_caffe",
    ]


def test_no_checkpoint_comes_from_an_address(service, wanted, refused, listener) -> None:
    port, asked = listener
    distill = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")} | {"policy": "none"}
    for address in addresses(port):
        assert "nothing is fetched" in refused(service.http.post("/checkpoints", json={"name": "far", "path": address}))
        assert "url: " in refused(service.http.post("/checkpoints", json={"name": "far", "url": address, "sha256": "0" * 64}))
        for role in ("teacher", "student"):
            choice = {"detector": wanted[role]["detector"], "checkpoint": address}
            for path, body in (("/searches", wanted), ("/searches/preview", wanted), ("/distill", distill)):
                detail = refused(service.http.post(path, json={**body, role: choice}))
                assert f"{role}.checkpoint: '{address}' is an address, and nothing is fetched; put the file below" in detail
    assert asked == []


def test_no_dataset_comes_from_an_address(service, refused, written, listener) -> None:
    port, asked = listener
    there = {"annotations": str(service.roots / "train/coco.json"), "images": str(service.roots / "train/images")}
    for address in addresses(port):
        for field in ("annotations", "images"):
            split = {**there, field: address}
            assert "nothing is fetched" in refused(service.http.post("/datasets", json={"name": "far", "train": split, "val": there}))
    assert asked == []


def test_addresses_inside_annotations_are_names_of_files_that_are_not_there(service, checked, refused_dataset, written, listener) -> None:
    """COCO's records carry `coco_url` and `flickr_url`; nobody follows them, nor a file name that is an address."""
    port, asked = listener
    sound = written(service.roots / "linked-val", 3, shade=60)
    train = written(service.roots / "linked", 3, shade=40)
    path = service.roots / "linked" / "coco.json"
    content = json.loads(path.read_text())
    for record in content["images"]:
        record |= {"coco_url": f"http://127.0.0.1:{port}/a.jpg", "flickr_url": "http://169.254.169.254/a.jpg"}
    path.write_text(json.dumps(content))
    assert checked(service.http, {"name": "linked", "train": train, "val": sound})["state"] == "READY"
    content["images"][0]["file_name"] = f"http://127.0.0.1:{port}/a.jpg"
    path.write_text(json.dumps(content))
    assert "there is no such file" in refused_dataset(service.http, {"name": "linked-2", "train": train, "val": sound})
    assert asked == []


def test_the_description_of_the_service_has_one_field_for_an_address(service) -> None:
    """`test_fetching` holds its defence. Whoever adds another adds it there: https alone, allowed hosts, the resolved address
    checked and kept, redirects checked again."""
    document = service.http.get("/openapi.json").json()

    def fields(node: object, name: str = "") -> Iterator[str]:
        if isinstance(node, dict):
            if node.get("format") in ("uri", "url", "iri"):
                yield name
            for key, value in node.items():
                if key.lower() in ("url", "uri", "webhook", "callback_url", "href"):
                    yield f"{name}.{key}"
                yield from fields(value, f"{name}.{key}")
        elif isinstance(node, list):
            for value in node:
                yield from fields(value, name)

    address = ".components.schemas.CheckpointRequest.properties.url"
    assert list(fields({"paths": document["paths"], "components": document["components"]})) == [address]
