"""`POST /searches/preview`: what is evaluated, why knowledge is left out, and what stays on disk."""

import pytest

from detkds_core.store import distillations, results


def preview(service, wanted, **changes):
    answer = service.http.post("/searches/preview", json={**wanted, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_is_measured_beside_the_proposals_is_named(service, wanted):
    confirmation = {"seeds": 3, "finalists": 1, "distillers": ["fgd", "2·l1(global)"]}
    told = preview(service, wanted, references=["none", "pkd"], confirmation=confirmation)["evaluated"]
    assert told == {
        "references": ["none", "5·l2(standardize(global))"],
        "distillers": ["fgd", "distiller 1"],
        "finalists": 1,
        "seeds": 3,
        "students": 12,  # no distillation, two distillers, one finalist, with three seeds
    }


def test_knowledge_that_is_left_out_has_its_reason(service, wanted):
    body = {**wanted, "student": {"detector": "retinanet_r18w8_fpn32"}, "knowledge": ["global", "instance"]}
    told = preview(service, body)
    assert set(told["formulas"]) == {"global", "instance"}
    assert told["excluded"]["logits"] == "the teacher has 1 prediction a cell, the student 3"
    assert told["excluded"]["fgbg"] == "the request names other knowledge"
    assert set(told["excluded"]) == {"fgbg", "logits", "localization"}


@pytest.fixture
def known(service, wanted):
    """A distillation of a student of 1,000,000 parameters."""
    body = {name: wanted[name] for name in ("dataset", "teacher", "recipe")} | {
        "student": {"detector": "gfl_r18w16_fpn32"},
        "policy": "none",
    }
    one = service.http.post("/distill", json=body).json()["id"]
    with service.store.begin() as session:
        metrics = {"student": {"parameters": 1_000_000}}
        row = distillations.get(session, one)
        results.create(session, row, policy={"terms": []}, ap=1.0, metrics=metrics, evidence={}, artifacts={}, environment={})
    return {**wanted, "student": {"detector": "gfl_r18w16_fpn32"}}


def test_disk_is_estimated_by_the_student_as_it_was_found(service, known):
    disk = preview(service, known)["disk"]
    assert disk["student"] == 4_000_000
    trunks = disk["trunks"]
    assert trunks % (3 * 4_000_000) == 0, "weights and two moments of AdamW, for each seed"
    assert trunks >= 12_000_000
    assert disk["bytes"] == trunks + disk["jobs"]
    assert disk["free"] > 0
    sgd = preview(service, known, recipe={**known["recipe"], "optimizer": "sgd"})["disk"]
    assert (sgd["trunks"] * 3, sgd["jobs"]) == (trunks * 2, disk["jobs"])
    assert preview(service, known, algorithm="random")["disk"]["trunks"] == 0, "what measures at the full proxy forks nowhere"


def test_disk_grows_with_the_jobs(service, known):
    known["recipe"] = {**known["recipe"], "iterations": 120}
    small, large = (preview(service, known, candidates=candidates)["disk"]["jobs"] for candidates in (12, 400))
    assert small * 10 < large
    # no distillation, two distillers and two finalists are two jobs a seed, for a group has four
    few, many = (
        preview(service, known, confirmation={"seeds": seeds, "finalists": 2, "distillers": ["pkd", "fgd"]})["disk"]["jobs"]
        for seeds in (5, 50)
    )
    assert many == few + 45 * 2 * 90_000


def test_without_a_distillation_the_size_is_a_checkpoints(service, wanted):
    disk = preview(service, wanted, student={"detector": "gfl_r18w8_fpn16"})["disk"]
    assert disk["student"] == (service.roots / "teacher.safetensors").stat().st_size
