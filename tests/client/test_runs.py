"""Labels, lists, clones, comparisons and lineage: by the client, and as the command shows them."""

import json
import re

import pytest

from detkds_client import Client, ProblemError, show_tables
from detkds_client.options import Refusal
from detkds_client.spelling import changes
from detkds_client.types import Candidate, Compared, Comparison, Distillation, Group, Result, Rung, Search
from detkds_core.store import distillations, jobs, results
from detkds_core.store import searches as stored

POLICY = {"terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]}


def paragraph(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@pytest.fixture
def client(service):
    with Client(service.url) as client:
        yield client


@pytest.fixture
def training(wanted):
    """A distillation that is possible."""
    return {**{name: wanted[name] for name in ("dataset", "teacher", "student", "recipe", "seed")}, "policy": "pkd"}


@pytest.fixture(scope="module")
def two_results(service):
    """The ids of two results of distillations on the same images, and of one on others."""
    made = []
    for name, ap, digest in (("low", 20.0, "d" * 20), ("high", 30.0, "d" * 20), ("elsewhere", 40.0, "e" * 20)):
        with service.store.begin() as session:
            spec = {"teacher": {"detector": "big"}, "student": {"detector": "small"}, "policy": POLICY, "recipe": {"iterations": 9}}
            one = distillations.create(session, name=name, spec=spec, dataset={"name": "shapes", "digest": digest})
            jobs.cancel(session, jobs.of_distillation(session, one.id).id)
            evidence = {"seed": 4, "images": {"report": 300}, "cost": {"seconds": 61.0, "iterations": 1200}}
            environment = {"detkds_core": "0.1.0", "torch": "2.14.1", "threads": "2"}
            made.append(
                results.create(session, one, policy=POLICY, ap=ap, metrics={}, evidence=evidence, artifacts={}, environment=environment).id
            )
    return made


def test_the_types_say_what_the_service_gives(client, wanted, training, two_results):
    search, trained = client.search(**wanted), client.distill(**training)
    assert set(search) == set(Search.__annotations__)
    assert set(trained) == set(Distillation.__annotations__)
    assert set(client.result(two_results[0])) == set(Result.__annotations__)
    found = client.compare(two_results)
    assert set(found) == set(Comparison.__annotations__)
    assert set(found["groups"][0]) == set(Group.__annotations__)
    assert set(found["groups"][0]["results"][0]) == set(Compared.__annotations__)


def test_labels_are_given_changed_and_found_by(client, wanted, training):
    one = client.search(**wanted, name="first", notes="n", tags=["client", "a"])
    other = client.distill(**training, name="second", tags=["client"])
    assert (one["notes"], one["tags"]) == ("n", ["a", "client"])
    assert client.label_search(one["id"], name="renamed", tags=["client"])["name"] == "renamed"
    assert client.label_distillation(other["id"], notes="x")["notes"] == "x"
    assert [each["name"] for each in client.searches(tag="client", name="RENAMED")] == ["renamed"]
    assert [each["id"] for each in client.distillations(tag="client", sort="created_at", limit=None)] == [other["id"]]
    with pytest.raises(ProblemError, match="there is no parameter 'colour'; one of limit"):
        client.searches(colour="red")


def test_a_request_is_repeated_with_changes(client, wanted, training):
    one = client.search(**wanted)
    again = client.clone_search(one["id"], seed=8, recipe={"batch": 1}, idempotency_key="clone-by-client")
    assert (again["cloned_from"], again["spec"]["seed"], again["spec"]["recipe"]["batch"]) == (one["id"], 8, 1)
    assert client.clone_search(one["id"], seed=8, recipe={"batch": 1}, idempotency_key="clone-by-client")["id"] == again["id"]
    other = client.distill(**training)
    assert client.clone_distillation(other["id"], policy="none")["formula"] == "none"


def test_results_are_found_and_compared(client, two_results):
    low, high, elsewhere = two_results
    assert [one["id"] for one in client.results(teacher="big", sort="-ap", ap_at_least=25)] == [elsewhere, high]
    groups = client.compare([elsewhere, low, high])["groups"]
    assert [[one["id"] for one in group["results"]] for group in groups] == [[elsewhere], [low, high]]


def test_labels_by_the_command(detkds, pairing):
    started = detkds("search", *pairing, "--candidates", "12", "--notes", "first", "--tag", "cli", "--tag", "b", "--no-wait")
    lines = [paragraph(line) for line in started.stdout.splitlines()]
    assert ("tags b, cli" in lines, "notes first" in lines) == (True, True), started.stdout + started.stderr
    one = json.loads(detkds("searches", "--tag", "cli", "--json").stdout)[0]["id"]
    shown = detkds("label", one, "--name", "called", "--notes", "", "--tag", "cli")
    lines = [paragraph(line) for line in shown.stdout.splitlines()]
    assert (lines[0], "tags cli" in lines) == (f"search called {one}", True), shown.stderr
    assert "notes" not in shown.stdout
    listed = detkds("searches", "--tag", "cli", "--sort", "-updated_at")
    assert listed.stdout.splitlines()[0].split()[:3] == ["id", "name", "state"]
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [one]
    assert json.loads(detkds("label", one, "--no-tags", "--json").stdout)["tags"] == []
    assert json.loads(detkds("label", one, "--priority", "-4", "--json").stdout)["priority"] == -4
    trained = json.loads(detkds("distill", *pairing, "--policy", "pkd", "--tag", "cli", "--no-wait", "--json").stdout)["id"]
    assert f"distillation other {trained}" in paragraph(detkds("label", trained, "--name", "other").stdout)
    assert "tags cli" in paragraph(detkds("distillations", trained).stdout)
    assert "No distillation passes these options" in detkds("distillations", "--tag", "cli", "--state", "DEAD").stdout
    assert "No search passes these options" in detkds("searches", "--tag", "of nobody").stdout


def test_a_clone_by_the_command(detkds, service, wanted):
    one = service.http.post("/searches", json={**wanted, "iterations": 500}).json()["id"]
    settings = ["--set", "confirmation.seeds=4", "--set", "confirmation.finalists=1", "--set", "candidates=null", "--set", "recipe.lr=0.01"]
    done = detkds("clone", one, "--seed", "8", *settings, "--recipe", "batch=1", "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    spec = json.loads(done.stdout)["spec"]
    assert (spec["seed"], spec["candidates"], spec["budget"], spec["recipe"]["batch"], spec["recipe"]["lr"]) == (8, None, 500, 1, 0.01)
    assert (spec["confirmation"]["seeds"], spec["confirmation"]["finalists"]) == (4, 1)
    shown = detkds("clone", one, "--no-wait")
    assert f"cloned from {one}" in [paragraph(line) for line in shown.stdout.splitlines()]
    body = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}
    trained = service.http.post("/distill", json={**body, "policy": "pkd"}).json()["id"]
    assert json.loads(detkds("clone", trained, "--policy", "none", "--no-wait", "--json").stdout)["formula"] == "none"


@pytest.mark.parametrize(
    ("texts", "body"),
    [
        (["seed=3", "a.b=1", "a.c=null", "name=x y"], {"seed": 3, "a": {"b": 1, "c": None}, "name": "x y"}),
        (['knowledge=["global"]'], {"knowledge": ["global"]}),
        (None, {}),
    ],
)
def test_changes_are_written_as_fields(texts, body):
    assert changes(texts) == body


def test_a_change_of_a_part_of_what_was_given_whole_is_refused():
    with pytest.raises(Refusal, match=r"--set recipe.lr: recipe is given whole already"):
        changes(["recipe=null", "recipe.lr=1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "none"], "what is to change? Give --name, --notes, --tag, --no-tags or --priority"),
        (["label", "none", "--tag", "a", "--no-tags"], "--tag and --no-tags at once"),
        (["label", "none", "--name", "a"], "none is neither a search nor a distillation"),
        (["clone", "none"], "none is neither a search nor a distillation"),
        (["clone", "none", "--set", "seed"], "--set seed: write it as FIELD=VALUE, for example --set confirmation.seeds=3"),
        (["compare", "none"], "one result alone; give 2 to 20: detkds compare ID ID"),
        (["compare", "none", "neither"], "there is no result none, neither; `detkds results` lists them"),
        (["searches", "--sort", "ap"], "--sort: 'ap' should be 'created_at', '-created_at'"),
        (["searches", "none", "--tag", "a"], "--tag: for lists; leave the id out, or the option"),
        (["results", "none", "--ap-at-least", "3"], "--ap-at-least: for lists"),
        (["results", "--term", "l3"], "--term: 'l3' is in no policy; one of abs,"),
        (["candidates", "none"], "there is no search none; `detkds searches` lists them"),
    ],
)
def test_a_mistake_is_one_paragraph(detkds, arguments, message):
    done = detkds(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in paragraph(done.stderr)


def test_a_comparison_by_the_command(detkds, two_results):
    low, high, elsewhere = two_results
    lines = [paragraph(line) for line in detkds("compare", low, elsewhere, high).stdout.splitlines()]
    columns = "id name AP 95 % interval seeds policy pair iterations time made with"
    rest = "5·l2(standardize(global)) big teaches small 1,200 1:01 detkds_core 0.1.0, torch 2.14.1"
    assert lines == [
        "shapes (digest dddddddddddd), 300 report images",
        columns,
        f"{high} high 30.0 - 4 {rest}",
        f"{low} low 20.0 - 4 {rest}",
        "",
        "shapes (digest eeeeeeeeeeee), 300 report images",
        "apart: measured on shapes (digest eeeeeeeeeeee), the first group on shapes (digest dddddddddddd):"
        " APs on other images are not compared",
        columns,
        f"{elsewhere} elsewhere 40.0 - 4 {rest}",
    ]
    best = json.loads(detkds("results", "--teacher", "big", "--sort", "-ap", "--limit", "1", "--json").stdout)
    assert [one["id"] for one in best] == [elsewhere]
    assert "No result passes these options" in detkds("results", "--dataset", "nope").stdout


def test_candidates_by_the_command(detkds, client, service, wanted):
    search = client.search(**wanted)["id"]
    with service.store.begin() as session:
        terms = [{**POLICY["terms"][0], "weight": weight} for weight in (1.0, 2.0)]
        common = {"stage": "stage1", "island": "global"}
        proposals = [
            {**common, "index": n, "policy": {"terms": [term]}, "operator": how, "parents": parents}
            for n, (term, how, parents) in enumerate(zip(terms, ("seed", "mutate"), ([], [0]), strict=True))
        ]
        stored.propose(session, search, proposals, ["a", "b"])
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search).id
        for number, members, rung, replicate in ((0, [0, 1], 1, 0), (1, [0], 2, 1)):
            stored.try_out(session, search, number, members, rung=rung, replicate=replicate, seed=1, job_id=job)
        stored.measure(session, search, 0, 0, {"ap": 12.0, "iterations": 1})
        stored.measure(session, search, 0, 1, {"rejected": {"gate": "descent", "detail": "its loss rises"}, "iterations": 1})
        stored.measure(session, search, 1, 0, {"ap": 14.0, "iterations": 2})
    assert set(client.candidates(search)[0]["rungs"][0]) == set(Rung.__annotations__)
    assert set(client.candidates(search)[0]) == set(Candidate.__annotations__)
    assert [one["index"] for one in client.candidates(search, operator="mutate")] == [1]
    lines = [paragraph(line) for line in detkds("candidates", search).stdout.splitlines()]
    assert lines == [
        "# island made by of AP at a rung outcome policy",
        "0 global seed - 1: 12.0 2 (seed 2): 14.0 measured l2(standardize(global))",
        "1 global mutate 0 1: - refused by descent: its loss rises 2·l2(standardize(global))",
    ]
    assert detkds("candidates", search, "--state", "DUPLICATE").stdout == "No such candidate.\n"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"failure": {"kind": "bug", "detail": "crashed"}}, "infeasible: crashed"),
        ({"same_as": 3, "state": "DUPLICATE"}, "a double of 3"),
        ({"rejected": {"gate": "finite", "detail": "inf"}, "audit": True}, "refused by finite: inf, trained all the same"),
        ({"state": "PROPOSED"}, "proposed"),
    ],
)
def test_what_became_of_a_candidate(changed, text):
    assert show_tables.outcome({"failure": None, "same_as": None, "rejected": None, "audit": False, "state": "MEASURED"} | changed) == text
