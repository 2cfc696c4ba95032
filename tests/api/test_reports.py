"""`GET /results/ID/report`: one page of what is stored of a result, in the figures of its confirmation and of its candidates."""

import re
from html import unescape

import pytest

from detkds_core.policy import parse_formula, to_json
from detkds_core.report import Row, verdict
from detkds_core.store import distillations, jobs, results
from detkds_core.store import searches as stored

NAME = '<b>"mine" & yours</b>'
FORMULAS = {
    "none": "none",
    "pkd": "5·l2(standardize(global))",
    "candidate 1": "1.23456·l1(global)",
    "candidate 2": "2·kl(softmax_C(logits))",
}
ENTRANTS = [  # AP of seeds 4, 5, 6
    ("none", "alone", (20.0, 21.0, 19.0)),
    ("pkd", "reference", (25.0, 26.0, 24.0)),
    ("candidate 1", "searched", (30.0, 31.2, 28.9)),
    ("candidate 2", "searched", (22.0, 22.5, 21.4)),
]


def confirmation():
    """The metrics of a search whose first finalist has won, as the evolver writes them."""
    rows = [Row(name, role, (4, 5, 6), ap, ap, ap, 0, 300) for name, role, ap in ENTRANTS]
    judged = verdict(rows)
    lines = [
        {
            "entrant": number,
            "candidate": None,
            "name": row.name,
            "role": row.role,
            "formula": FORMULAS[row.name],
            "policy": to_json(parse_formula(FORMULAS[row.name])),
            "seeds": list(row.seeds),
            **{name: list(row.ap) for name in ("ap", "ap50", "ap75")},
            "mean_ap": row.mean,
            "interval": [row.mean - 2.5, row.mean + 2.5],
            "choices": 1,
            "images": 300,
            "failures": [],
        }
        for number, row in enumerate(rows)
    ]
    lost = {
        **lines[3],
        "entrant": 4,
        "name": "candidate 3",
        "seeds": [],
        "ap": [],
        "ap50": [],
        "ap75": [],
        "mean_ap": None,
        "interval": None,
    }
    return {**judged.to_json(), "searched": {"entrant": 2}, "winner": {"entrant": 2, "candidate": 1}, "rows": [*lines, lost]}


@pytest.fixture(scope="module")
def searched(service):
    """The result of a search of three candidates, one of them infeasible."""
    spec = {**service.search(), "budget": 10, "rungs": [2]}
    digest = "d" * 20
    with service.store.begin() as session:
        search = stored.create(session, name=NAME, spec=spec, dataset={"name": "shapes", "digest": digest})
        stored.start(session, search)
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search.id)
        for index, (text, ap) in enumerate((("5·l2(standardize(global))", 11.0), ("1.23456·l1(global)", 17.25), ("l2(global)", None))):
            reference = index == 0
            island = None if reference else "global"
            proposal = {"policy": to_json(parse_formula(text)), "stage": "reference" if reference else "stage1", "island": island}
            stored.propose(session, search.id, [{"index": index, "operator": "sample", "parents": [], **proposal}], [f"k{index}"])
            stored.try_out(session, search.id, index, [index], rung=2, replicate=0, seed=1, job_id=job.id)
            row = {"ap": ap, "images": 200, "policy": proposal["policy"], "iterations": 2, "seconds": 1.0}
            if ap is None:
                row["failure"] = {"kind": "not_finite", "detail": "the loss is nan"}
            stored.measure(session, search.id, index, index, row)
        stored.confirm(session, search)
        stored.succeed(session, search)
        evidence = {
            "images": {"selection": 200, "report": 300},
            "seeds": {"search": 3, "confirmation": [4, 5, 6]},
            "recipe": {"iterations": 2, "batch": 2, "clip": None},
            "candidates": {"proposed": 3, "measured": 2, "infeasible": 1},
            "cost": {"seconds": 90.5, "iterations": 4000},
            "versions": {"detkds_core": "0.1.0"},
        }
        policy = to_json(parse_formula(FORMULAS["candidate 1"]))
        result = results.create(
            session,
            search,
            policy=policy,
            ap=30.03,
            metrics=confirmation(),
            evidence=evidence,
            artifacts={},
            environment={"torch": "2.14.1"},
        )
        return result.id


@pytest.fixture
def trained(service):
    """Make a result of a distillation with these metrics: `trained(policy, metrics)`; its id."""

    def make(policy, metrics):
        spec = {**{name: service.search()[name] for name in ("dataset", "teacher", "student", "recipe")}, "policy": policy}
        with service.store.begin() as session:
            one = distillations.create(session, name="trained once", spec=spec, dataset={"name": "shapes", "digest": "e" * 20})
            evidence = {"seed": 7, "inherited": {"tensors": 29, "of": 32}, "images": {"report": 300}, "recipe": {"iterations": 9}}
            ap = metrics.get("student", {}).get("ap")
            rest = {"evidence": evidence, "artifacts": {}, "environment": {}}
            return results.create(session, one, policy=policy, ap=ap, metrics=metrics, **rest).id

    return make


def text(page):
    """The words of a page, without its style."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).replace("<wbr>", "")
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def page(service, result):
    answer = service.http.get(f"/results/{result}/report")
    assert answer.status_code == 200, answer.text
    return answer


def test_a_search_is_reported_with_its_confirmation_and_its_candidates(service, searched):
    answer = page(service, searched)
    said = text(answer.text)
    # The means are 20, 25 and 30.03: with three paired seeds both differences are beyond noise.
    assert "The searched policy beat pkd beyond noise: +5.0 AP" in said
    assert "student alone 20.0 ±2.5" in said
    assert "student, pkd 5·l2(standardize(global)) 25.0 ±2.5" in said
    assert "student, searched policy 1.235·l1(global) 30.0 ±2.5" in said
    assert "student, candidate 2 2·kl(softmax_C(logits)) 22.0 ±2.5" in said
    assert "candidate 3" not in said, "no seed of it was measured"
    assert "300 3 (4, 5, 6)" in said
    assert "The searched policy 1.235·l1(global)" in said
    assert "3 candidates, 1 of them references: 2 measured, 1 infeasible." in said
    assert "measured on 200 selection images, with seed 3" in said
    assert "1 17.2 2 stage 1 global sample 1.235·l1(global) 0 11.0 2 reference pkd sample 5·l2(standardize(global))" in said
    assert "recipe iterations 2, batch 2 " in said
    assert "took 4,000 iterations, 90 s" in said
    assert "made with detkds core 0.1.0, torch 2.14.1" in said
    assert len(re.findall(r"data:image/png;base64,", answer.text)) == 2, "the search as a picture, in light and in dark"


def test_the_page_is_safe_to_open_whatever_it_is_called(service, searched):
    answer = page(service, searched)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'inline; filename="report-{searched}.html"'
    policy = dict(part.split(" ", 1) if " " in part else (part, "") for part in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["img-src"], policy["frame-ancestors"]) == ("'none'", "data:", "'none'")
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "<script" not in answer.text
    assert NAME not in answer.text, "a name stays text"
    assert NAME in text(answer.text.replace("&lt;", "&amp;lt;").replace("&gt;", "&amp;gt;")).replace("&lt;", "<").replace("&gt;", ">")


def test_the_parameters_are_those_of_an_earlier_distillation(service, searched, trained):
    assert "student alone 20.0 ±2.5 20.0 ±1.0" not in text(page(service, searched).text), "t over the seeds: 1 * 4.303 / sqrt(3) = 2.5"
    assert "student alone 20.0 ±2.5 20.0 ±2.5 20.0 ±2.5 – 300" in text(page(service, searched).text)
    trained({"terms": []}, {"student": {"ap": 1.0, "ap50": 2.0, "ap75": 0.5, "parameters": 259_000, "images": 300}})
    assert "student alone 20.0 ±2.5 20.0 ±2.5 20.0 ±2.5 259 k 300" in text(page(service, searched).text)


def test_a_distillation_is_reported_beside_its_teacher_and_claims_nothing_more(service, trained):
    student = {"ap": 31.2, "ap50": 54.0, "ap75": 30.1, "parameters": 530_000, "images": 300}
    teacher = {"ap": 40.1, "ap50": 60.0, "ap75": 42.0, "parameters": 2_900_000, "images": 300}
    pkd = to_json(parse_formula(FORMULAS["pkd"]))
    said = text(page(service, trained(pkd, {"student": student, "teacher": teacher, "warnings": ["a term was 0"]})).text)
    assert "The student has 31.2 AP, where the teacher has 40.1. What distillation brought, one training alone does not tell" in said
    assert "teacher 40.1 60.0 42.0 2.90 M 300 1 student 31.2 54.0 30.1 530 k 300 1 (7)" in said
    assert "The policy 5·l2(standardize(global))" in said
    assert "warnings a term was 0" in said
    assert "inherited 29 of the 32 tensors of neck and head, from the teacher" in said
    assert "The search" not in said
    alone = text(page(service, trained({"terms": []}, {"student": student})).text)
    assert "student alone 31.2" in alone
    assert "The student has 31.2 AP. What" in alone
    assert "No term: the student learns from the annotations alone." in alone


def test_what_an_old_result_lacks_is_left_out(service, trained, of_search):
    said = text(page(service, trained({"terms": []}, {})).text)
    assert "The student was not measured." in said
    assert "AP in percent" not in said, "there is no table of nothing"
    assert "The policy 5·l2(standardize(global))" in text(page(service, of_search()).text)
