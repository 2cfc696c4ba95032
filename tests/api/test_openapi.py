"""The service describes itself: every operation has an example, and examples are what the operation takes and gives."""

import jsonschema_rs
import pytest

OPERATIONS = {
    ("post", "/searches"),
    ("post", "/searches/preview"),
    ("get", "/searches"),
    ("get", "/searches/{search_id}"),
    ("patch", "/searches/{search_id}"),
    ("post", "/searches/{search_id}/clone"),
    ("post", "/searches/{search_id}/cancel"),
    ("post", "/searches/{search_id}/extend"),
    ("post", "/searches/{search_id}/pause"),
    ("post", "/searches/{search_id}/resume"),
    ("get", "/searches/{search_id}/candidates"),
    ("get", "/searches/{search_id}/ledger"),
    ("get", "/searches/{search_id}/events"),
    ("post", "/distill"),
    ("get", "/distill"),
    ("get", "/distill/{distillation_id}"),
    ("patch", "/distill/{distillation_id}"),
    ("post", "/distill/{distillation_id}/clone"),
    ("post", "/distill/{distillation_id}/cancel"),
    ("post", "/distill/{distillation_id}/pause"),
    ("post", "/distill/{distillation_id}/resume"),
    ("get", "/distill/{distillation_id}/events"),
    ("get", "/results"),
    ("get", "/results/compare"),
    ("get", "/results/{result_id}"),
    ("get", "/results/{result_id}/checkpoint"),
    ("get", "/results/{result_id}/detections"),
    ("get", "/results/{result_id}/policy"),
    ("get", "/results/{result_id}/report"),
    ("get", "/checkpoints"),
    ("post", "/checkpoints"),
    ("get", "/checkpoints/{checkpoint_id}"),
    ("delete", "/checkpoints/{checkpoint_id}"),
    ("put", "/checkpoints/{checkpoint_id}/parts/{number}"),
    ("post", "/checkpoints/{checkpoint_id}/complete"),
    ("get", "/datasets"),
    ("post", "/datasets"),
    ("get", "/datasets/{name}"),
    ("delete", "/datasets/{name}"),
    ("get", "/detectors"),
    ("get", "/policies"),
    ("get", "/search-space"),
    ("get", "/workers"),
    ("post", "/workers/{worker_id}/drain"),
    ("post", "/workers/{worker_id}/undrain"),
    ("get", "/jobs"),
    ("get", "/jobs/{job_id}"),
    ("get", "/jobs/{job_id}/attempts/{attempt}/log"),
    ("get", "/keys"),
    ("post", "/keys"),
    ("delete", "/keys/{key_id}"),
    ("get", "/health"),
    ("get", "/ready"),
    ("get", "/metrics"),
}


@pytest.fixture
def document(service):
    return service.http.get("/openapi.json").json()


def test_the_operations_are_these(document):
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == OPERATIONS


def check(document, media, what):
    assert "example" in media, f"{what} has no example"
    schema = {**media["schema"], "components": document["components"]}
    jsonschema_rs.validate(schema, media["example"])


def test_every_operation_has_an_example_that_fits_its_schema(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path} does not say what it does"
            success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
            if path.endswith("/checkpoint"):
                assert "application/octet-stream" in success["content"]
                continue
            if path.endswith("/events"):
                assert success["content"]["text/event-stream"]["example"].startswith("id: ")
                continue
            if path.endswith("/report"):
                assert success["content"]["text/html"]["example"].startswith("<!doctype html>")
                assert success["content"].keys() == {"text/html"}
                continue
            if path == "/metrics":
                assert success["content"]["text/plain"]["example"].startswith("# TYPE detkds_")
                continue
            if path.endswith("/ledger"):
                assert success["content"]["application/x-ndjson"]["example"].endswith("\n")
                continue
            check(document, success["content"]["application/json"], f"the answer of {method} {path}")
            if path.endswith("/parts/{number}"):
                assert operation["requestBody"]["content"].keys() == {"application/octet-stream"}
            elif "requestBody" in operation:
                check(document, operation["requestBody"]["content"]["application/json"], f"the body of {method} {path}")


def test_request_examples_can_be_posted(document, service):
    """The search example names the pair that ships; only its teacher may be missing from a checkout that has not trained one."""
    example = document["paths"]["/searches"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert example["pair"] in {pair["name"] for pair in service.http.get("/detectors").json()["pairs"]}
