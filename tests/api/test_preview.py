"""`POST /searches/preview`: how far a search goes, what is evaluated, why knowledge is left out, and what stays on disk."""

import random
import time

import pytest

from detkds_api.budget import confirming_jobs, expected_students
from detkds_api.preview import LUCK, foreseen
from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.policy import SearchSpace, canonical, named_policies, to_json
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
        "students": 15,  # no distillation, two distillers, PKD (a reference that is none of them) and one finalist, with three seeds
    }


def test_a_two_stage_pair_confirms_the_default_reference_beside_the_distillers_that_suit_it(service, wanted):
    """PKD, the default reference, does not suit a two-stage student: there it is `pkd_two_stage`. So it is confirmed as one more."""
    body = {**wanted, "teacher": {**wanted["teacher"], "detector": "faster_rcnn_r18w32_fpn32"}}
    told = preview(service, {**body, "student": {"detector": "faster_rcnn_r18w16_fpn32"}})
    distillers = told["evaluated"]["distillers"]
    assert "pkd_two_stage" in distillers
    assert "pkd" not in distillers
    assert told["evaluated"]["students"] == 5 * (1 + len(distillers) + 1 + 2)
    assert told["confirmation_iterations"] == told["evaluated"]["students"] * 2


def confirming(references, distillers):
    """The confirmation's part of a specification: 2 finalists with 5 seeds, in jobs of 4."""
    policies = [to_json(canonical(named_policies()[name].policy)) for name in references]
    confirmation = {"finalists": 2, "seeds": 5, "iterations": 9, "distillers": distillers}
    return {"references": policies, "confirmation": confirmation, "group": 4}


@pytest.mark.parametrize(
    ("references", "distillers", "entrants"),
    [
        (["none", "pkd"], ["pkd"], 4),
        (["none", "pkd", "fitnets", "defeat"], ["pkd"], 5),  # the best of the two others
        (["none", "pkd"], ["pkd", "fitnets"], 5),
        (["none", "pkd"], [], 4),
        (["none"], [], 3),
        ([], ["pkd"], 4),
        (["none", "pkd"], ["none", "pkd", "pkd"], 4),  # each policy once
        (["none", "pkd"], [{"name": "mine", "policy": to_json(named_policies()["pkd"].policy)}], 4),  # PKD by another name
    ],
)
def test_the_students_of_a_confirmation_are_those_that_the_evolver_enters(references, distillers, entrants):
    spec = confirming(references, distillers)
    assert expected_students(spec) == 5 * entrants
    assert confirming_jobs(spec) == 5 * (1 if entrants <= 4 else 2)


KNOWLEDGE = ("global", "fgbg", "instance", "logits", "localization")


def course(proxies, **changes):
    """A search over all knowledge, with a budget of so many full proxies of 120 iterations."""
    references = tuple(canonical(named_policies()[name].policy) for name in ("none", "pkd", "fitnets", "defeat"))
    space = SearchSpace(knowledge=KNOWLEDGE, images_per_batch=8)
    settings = {"rungs": (30, 120), "group": 4, "parallelism": 2, "look": 4, "lenient": True} | changes
    return Spec(knowledge=KNOWLEDGE, budget=proxies * 120, seed=0, references=references, space=space, **settings)


def to_its_end(spec):
    """(candidates, of them at each rung, iterations) of a search whose candidates are worth what a preview's are."""
    evolution, rng, worth = Evolution(spec), random.Random(0), {}
    while (job := evolution.ask()) is not None:
        evolution.tell(job.index, {one: Outcome(worth.setdefault(one, rng.random()) + LUCK * rng.random()) for one in job.members})
    reached = [len({index for job in evolution.jobs if job.rung == rung for index in job.members}) for rung in range(len(spec.rungs))]
    return len(evolution.candidates), reached, evolution.history().spent


def test_a_large_budget_is_foreseen_with_the_first_candidates_that_pass_every_rung():
    spec = course(160)
    assert spec.calibrators == 30
    proposed, reached, spent = to_its_end(spec)
    ahead = foreseen(spec)
    assert (ahead.proposed, list(ahead.reached), ahead.spent) == (proposed, reached, spent)
    assert proposed < 260, "thirty candidates at 150 iterations are a quarter of it"


@pytest.mark.parametrize(
    "spec",
    [course(200), course(200, rungs=(10, 50, 120)), course(1000, candidates=360)],
    ids=["two rungs", "three rungs", "candidates end it"],
)
def test_a_course_that_is_too_long_to_be_played_is_foreseen_from_a_part(spec):
    assert spec.calibrators == 30
    proposed, reached, spent = to_its_end(spec)
    ahead = foreseen(spec)
    assert ahead.proposed == pytest.approx(proposed, rel=0.15)
    assert ahead.spent == pytest.approx(spent, rel=0.15)
    for here, there in zip(ahead.reached, reached, strict=True):
        assert here == pytest.approx(there, rel=0.5 if there < 100 else 0.2)


def test_a_preview_of_any_budget_is_quick():
    began = time.process_time()
    foreseen(course(100_000))
    assert time.process_time() - began < 5  # about 0.8 s on a slow core


def test_a_search_that_its_candidates_end_spends_less_than_its_budget(service, wanted):
    wanted["recipe"]["iterations"] = 120
    bought = preview(service, wanted, candidates=12, iterations=100_000)
    # Twelve candidates at 30 and 120 iterations with a look at 4, and the best once more with other seeds.
    assert 12 * (30 + 120 + 4) <= bought["iterations"] <= 12 * (30 + 120 + 4) + 2 * 12 * 120
    assert bought["spec"]["budget"] == 100_000
    assert preview(service, wanted, candidates=None, iterations=100_000)["iterations"] == 100_000


def test_trunks_are_counted_beside_what_the_budget_buys(service, wanted):
    wanted["recipe"]["iterations"] = 120
    bought = preview(service, wanted, candidates=None, iterations=2400)
    assert bought["iterations"] == 2400
    assert bought["trunk_iterations"] in (60, 120, 180), "half a proxy for each seed that the full proxy is repeated with"
    assert preview(service, wanted, candidates=None, iterations=2400, algorithm="random")["trunk_iterations"] == 0


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
