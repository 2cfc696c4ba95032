"""Who is confirmed, on what, who wins, and what the result says of it. The worker trains nothing; queue and database are real."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from detkds_api.budget import expected_students
from detkds_api.reports import page, report_of
from detkds_core.policy import named_policies, parse_formula, to_json
from detkds_core.store import Store, jobs, results, searches

from .worker import LUCK, ap_of, create, drive, ended, evolver, measured, outcome, search_spec, specs

NONE, PKD, FIRST, SECOND = range(4)  # the entrants: two finalists


def test_the_confirmation_measures_everybody_on_fresh_seeds(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite)
    confirm = specs(sqlite, search, "confirm")
    assert [spec["seed"] for spec in confirm] == [6, 6, 7, 7, 8, 8]
    assert {spec["recipe"]["iterations"] for spec in confirm} == {300}
    assert [[one["index"] for one in spec["candidates"]] for spec in confirm] == [[0, 1], [2, 3]] * 3
    assert len({str(spec["candidates"]) for spec in confirm}) == 2, "every seed trains the same policies"
    found = outcome(sqlite, search)
    entrants = found["confirmations"][::3]
    assert [(one["name"], one["role"], one["candidate"]) for one in entrants[:2]] == [("none", "alone", 0), ("pkd", "reference", 1)]
    searched = {one["index"] for one in found["candidates"] if one["stage"] != "reference" and one["rung"] == 100}
    assert len({one["candidate"] for one in entrants[2:]}) == 2
    assert {one["candidate"] for one in entrants[2:]} <= searched
    assert all(one["ap"] == ap_of(one["policy"], one["seed"], "confirm 300") for one in found["confirmations"])


def confirmed_as(figures: Mapping[int, list[float]]) -> Callable[..., dict[str, Any]]:
    """What `measured` gives, but for entrants whose AP with seeds 6, 7, 8 is given."""

    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "confirm" and candidate["index"] in figures:
            one["ap"] = figures[candidate["index"]][spec["seed"] - 6]
            one["resampled_ap"] = [one["ap"] + luck for luck in LUCK]
        return one

    return row


def test_the_winner_is_the_one_that_wins_on_the_sealed_images(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite, confirmed_as({PKD: [28.0, 29.0, 30.0], FIRST: [31.0, 32.1, 32.9], SECOND: [33.0, 34.0, 35.1]}))
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.metrics["returned"] == "searched"
    assert result.metrics["winner"]["entrant"] == result.metrics["searched"]["entrant"] == SECOND
    assert result.ap == result.metrics["ap"] == pytest.approx(34.0333, abs=1e-3)
    assert result.metrics["against_reference"]["outcome"] == "better"
    assert result.metrics["against_reference"]["choices"] == 1, "the other finalist is far behind"
    low, high = result.metrics["interval"]
    assert low < result.ap < high
    assert result.evidence["draws"] == len(LUCK)


def test_a_finalist_that_does_not_beat_the_best_distiller_gives_way_to_it(sqlite: Store) -> None:
    """FIRST has the highest mean, but by 0.5, -0.4 and 0.5 over FitNets, which is the best of three distillers."""
    named = {"finalists": 2, "seeds": 3, "iterations": 300, "distillers": ["pkd", "fitnets", "defeat"]}
    search = create(sqlite, confirmation=named)
    ap = {1: [30.0, 31.0, 32.0], 2: [33.0, 34.0, 35.0], 3: [29.0, 30.0, 31.0], 4: [33.5, 33.6, 35.5], 5: [31.0, 32.0, 33.0]}
    drive(sqlite, confirmed_as(ap))
    with sqlite.read() as session:
        result = results.of_search(session, search)
    metrics = result.metrics
    assert (metrics["returned"], metrics["reference"]["name"], metrics["winner"]["entrant"]) == ("reference", "fitnets", 2)
    assert result.policy == to_json(named_policies()["fitnets"].policy)
    assert result.ap == 34.0
    assert metrics["searched"]["entrant"] == 4
    assert metrics["searched"]["mean_ap"] == pytest.approx(34.2)
    assert metrics["why"].startswith(
        "The searched policy and fitnets, the best of 3 hand-designed policies, do not differ beyond noise: +0.2 AP"
    )
    assert metrics["why"].endswith("So the result is fitnets.")
    assert metrics["verdict"].startswith("Distillation with fitnets beat the student alone beyond noise:")
    assert metrics["against_alone"]["first"] == "fitnets"
    pairs = [(one["first"], one["second"]) for one in metrics["comparisons"]]
    assert len(pairs) == len(set(pairs)) == 8  # five against alone, the best searched against three
    rows = {row["name"]: row for row in metrics["rows"]}
    assert rows["pkd"]["choices"] == 1
    # Within reach of the best finalist at 99 %, t(2) = 9.925, is the other: 2.5, 1.6, 2.5, so 2.2 +- 3.0. PKD is 3 behind with every seed.
    assert metrics["searched"]["choices"] == 2
    assert rows["fitnets"]["choices"] == metrics["reference"]["choices"] == 1


def test_without_draws_of_the_images_the_intervals_are_over_the_seeds(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in measured(candidate, spec).items() if name != "resampled_ap"}

    search = create(sqlite)
    drive(sqlite, row)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.evidence["draws"] == 0
    assert result.metrics["against_alone"]["images"] == 0


def test_confirmations_of_searches_that_name_no_distillers_have_pkd(sqlite: Store) -> None:
    search = create(sqlite, confirmation={"finalists": 1})
    drive(sqlite)
    found = outcome(sqlite, search)
    assert {one["name"] for one in found["confirmations"] if one["role"] == "reference"} == {"pkd"}
    assert len({one["seed"] for one in found["confirmations"]}) == 5


def test_distillers_may_be_policies_and_are_measured_once(sqlite: Store) -> None:
    halved = to_json(parse_formula("2.5·l2(standardize(global))"))
    again = to_json(named_policies()["pkd"].policy)
    named = [{"name": "pkd halved", "policy": halved}, {"name": "pkd", "policy": again}, "pkd", "none"]
    search = create(sqlite, confirmation={"finalists": 1, "seeds": 3, "iterations": 9, "distillers": named})
    drive(sqlite)
    entrants = outcome(sqlite, search)["confirmations"][::3]
    assert [(one["name"], one["role"]) for one in entrants[:3]] == [("none", "alone"), ("pkd halved", "reference"), ("pkd", "reference")]
    assert entrants[2]["candidate"] == 1, "the search measured PKD too"
    assert [one["role"] for one in entrants[3:]] == ["searched"]


def test_the_result_says_what_its_trainers_found_out(sqlite: Store) -> None:
    """Of a search on its way which candidates, of its confirmation how often with which seed: the figures rest on these."""

    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = {name: value for name, value in measured(candidate, spec).items() if name != "not_finite"}
        if spec["kind"] == "evaluate" and candidate["index"] in range(1, 12) and one["ap"] is not None:
            one["not_finite"] = 5
        if spec["kind"] == "confirm" and (candidate["index"], spec["seed"]) in ((PKD, 6), (PKD, 8), (FIRST, 7)):
            one["not_finite"] = spec["seed"]
        return one

    search = create(sqlite, warnings=["the images are small", "fc.weight is not used"])
    drive(sqlite, row)
    found = outcome(sqlite, search)
    name = next(one["name"] for one in found["confirmations"] if one["entrant"] == FIRST)
    wrong = [one["index"] for one in found["candidates"] if one["index"] in range(1, 12) and one["ap"] is not None]
    assert wrong == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11], "2 is refused"
    assert found["result"]["metrics"]["warnings"] == [
        "the images are small",
        "fc.weight is not used",
        "the rate was scaled",
        "some detections of candidates 1, 3, 4, 5, 6, 7, 8, 9 and 2 more on the selection images have a box or score that is not finite; "
        "each counts as wrong and matches no object",
        "detections of pkd on the report images whose box or score is not finite: 6 with seed 6, 8 with seed 8; "
        "each counts as wrong and matches no object",
        f"detections of {name} on the report images whose box or score is not finite: 7 with seed 7; "
        "each counts as wrong and matches no object",
    ]
    assert found["result"]["evidence"]["inherited"] == {"tensors": 18, "of": 37}


def test_a_result_of_trainers_that_say_nothing_has_no_warnings(sqlite: Store) -> None:
    search = create(sqlite)
    one = evolver(sqlite)
    while not ended(sqlite, search):
        one.round()
        with sqlite.begin() as session:
            if (claim := jobs.claim(session, worker="w", lease_seconds=60)) is not None:
                rows = [measured(candidate, claim.spec) | {"not_finite": 0} for candidate in claim.spec["candidates"]]
                assert jobs.finish(session, claim, {"candidates": rows, "environment": {}})
    result = outcome(sqlite, search)["result"]
    assert (result["metrics"]["warnings"], result["evidence"]["inherited"]) == ([], None)


def test_the_result_carries_its_evidence(sqlite: Store) -> None:
    search = create(sqlite)
    drive(sqlite)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert (result.kind, result.dataset, result.dataset_digest, result.environment) == ("search", "shapes", "d1", {"torch": "none"})
    assert result.evidence["seeds"] == {"search": 5, "confirmation": [6, 7, 8]}
    assert result.evidence["images"] == {"selection": 150, "report": 150}
    candidates = outcome(sqlite, search)["candidates"]
    counts = Counter(one["state"] for one in candidates)
    ended = {"measured": counts["MEASURED"], "rejected": counts["REJECTED"], "duplicates": counts["DUPLICATE"], "infeasible": 0}
    assert result.evidence["candidates"] == {"proposed": len(candidates), **ended}
    assert sum(ended.values()) == len(candidates)
    with sqlite.read() as session:
        trials = searches.trials(session, search)
    # 4 policies with 3 seeds of 300 iterations; 2 s each, as every trial
    cost = result.evidence["cost"]
    assert cost["confirmation_seconds"] == 24.0
    assert cost["search_seconds"] == 2.0 * len(trials)
    assert cost["iterations"] == 3600 + sum(one.iterations for one in trials)
    assert result.evidence["summary"]["funnel"]["proposed"] == len(candidates)
    assert sum(result.evidence["summary"]["funnel"]["rejected"].values()) == counts["REJECTED"]
    assert result.evidence["summary"]["funnel"]["false_reject_rate"] is None, "none was audited"
    # Each candidate meets both gates, an eighth of a second each; every measurement begins with a look of half a second.
    nobody = {"audited": 0, "falsely_rejected": 0, "false_reject_rate": None, "false_reject_interval": None}
    assert result.evidence["summary"]["funnel"]["gates"] == {
        "duplicate": {"refused": 0, **nobody, "seconds": 0.125 * len(candidates)},
        "descent": {"refused": counts["REJECTED"], **nobody, "seconds": 0.125 * len(candidates)},
    }
    assert result.evidence["summary"]["funnel"]["look_seconds"] == 0.5 * len(trials) + 0.25 * len(candidates)
    told = result.evidence["insight"]["gates"]
    assert told == [{"gate": gate, **one} for gate, one in result.evidence["summary"]["funnel"]["gates"].items()]
    assert set(result.evidence["versions"]) == {"detkds_core", "detkds_evolver"}
    rows = {row["name"]: row for row in result.metrics["rows"]}
    assert rows["none"]["ap"] == [ap_of({"terms": []}, seed, "confirm 300") for seed in (6, 7, 8)]
    assert rows["none"]["mean_ap"] == pytest.approx(sum(rows["none"]["ap"]) / 3)
    assert rows["none"]["interval"][0] < rows["none"]["mean_ap"] < rows["none"]["interval"][1]
    assert result.metrics["against_alone"]["outcome"] == "better"
    assert "beat the student alone beyond noise" in result.metrics["verdict"]
    assert result.metrics["against_alone"]["images"] == 150
    taught = result.evidence["insight"]
    assert taught["candidates"] == len(candidates)
    assert {line["knowledge"] for line in taught["knowledge"]} <= {"global", "fgbg", "logits"}
    assert sum(line["cost"]["seconds"] for line in taught["cost"]) == cost["search_seconds"]


def test_the_audit_of_each_gate_is_that_of_the_stored_measurements(sqlite: Store) -> None:
    """All that gates refuse is trained all the same: what the first loss refuses is poor, of what `descent` refuses half is the best."""
    aps: dict[str, list[float]] = {"first_loss": [], "descent": []}

    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if one.get("rejected"):
            gate = min(aps, key=lambda name: len(aps[name]))  # in turn
            ap = 99.0 if gate == "descent" and len(aps[gate]) % 2 == 0 else 1.0
            one |= {"rejected": {"gate": gate, "detail": "of this test"}, "ap": ap}
            aps[gate].append(ap)
        return one

    search = create(sqlite, audit=1.0, budget=4000)
    drive(sqlite, row)
    with sqlite.read() as session:
        funnel = results.of_search(session, search).evidence["summary"]["funnel"]
    assert 99.0 in aps["descent"], "a gate that errs"
    for gate, of_gate in aps.items():
        found = funnel["gates"][gate]
        false = of_gate.count(99.0)
        assert (found["refused"], found["audited"], found["falsely_rejected"]) == (len(of_gate), len(of_gate), false)
        assert found["false_reject_rate"] == pytest.approx(false / len(of_gate))
    for name in ("audited", "falsely_rejected"):
        assert funnel[name] == sum(one[name] for one in funnel["gates"].values())


def test_a_winner_that_is_no_better_is_called_so(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "confirm":
            one["ap"] = 30.0 + (candidate["index"] * 7 + spec["seed"] * 5) % 3  # seeds differ more than policies
            one["resampled_ap"] = [one["ap"] + luck for luck in LUCK]
        return one

    search = create(sqlite)
    drive(sqlite, row)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.metrics["against_reference"]["outcome"] == "within noise"
    assert "do not differ beyond noise" in result.metrics["verdict"]
    assert "did not beat the student alone beyond noise" in result.metrics["verdict"]


def test_a_finalist_that_fails_with_one_seed_does_not_win(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        one = measured(candidate, spec)
        if spec["kind"] == "confirm" and candidate["index"] == 2 and spec["seed"] == 7:
            return {"index": 2, "failure": {"kind": "not_finite", "detail": "step 5"}}
        return one

    search = create(sqlite)
    drive(sqlite, row)
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert result.metrics["searched"]["entrant"] == 3
    failed = next(row for row in result.metrics["rows"] if row["entrant"] == 2)
    assert failed["seeds"] == [6, 8]
    assert failed["failures"] == [{"seed": 7, "kind": "not_finite", "detail": "step 5"}]


def test_a_search_that_has_nothing_to_confirm_says_why(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        if candidate["index"] < 2:
            return measured(candidate, spec)
        return {"index": candidate["index"], "failure": {"kind": "not_finite", "detail": "step 1"}}

    search = create(sqlite)
    drive(sqlite, row)
    found = outcome(sqlite, search)
    assert found["state"] == "FAILED"
    assert found["reason"] == "no searched candidate could be trained; candidate 2: not_finite: step 1"


def test_a_search_without_references_is_still_compared_with_them(sqlite: Store) -> None:
    search = create(sqlite, references=[])
    drive(sqlite)
    found = outcome(sqlite, search)
    assert found["state"] == "SUCCEEDED"
    assert {one["name"] for one in found["confirmations"] if one["role"] != "searched"} == {"none", "pkd"}
    assert [one["candidate"] for one in found["confirmations"] if one["role"] == "alone"] == [None] * 3


def test_the_best_other_reference_is_confirmed_too(sqlite: Store) -> None:
    named = [to_json(named_policies()[name].policy) for name in ("none", "pkd", "fitnets", "defeat")]
    search = create(sqlite, references=named)
    drive(sqlite)
    found = outcome(sqlite, search)
    best = max((2, 3), key=lambda index: (found["candidates"][index]["rung"] or 0, found["candidates"][index]["ap"] or 0))
    references = {one["name"]: one["candidate"] for one in found["confirmations"] if one["role"] == "reference"}
    assert references == {"pkd": 1, ("fitnets", "defeat")[best - 2]: best}
    assert len(found["confirmations"]) == expected_students(search_spec(references=named)) == 3 * 5, "as its preview said"


FITNETS = to_json(named_policies()["fitnets"].policy)


def with_fitnets_first(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What `measured` gives, but that FitNets, with which an island begins, is better than all others."""
    one = measured(candidate, spec)
    if candidate["policy"] == FITNETS:
        one |= {"ap": 50.0 + spec["seed"] % 5, "rejected": None}
        if spec["kind"] == "confirm":
            one["resampled_ap"] = [one["ap"] + luck for luck in LUCK]
    return one


@pytest.mark.parametrize("finalists", [1, 2])
def test_a_finalist_that_has_a_name_is_hand_designed_and_no_finalist(sqlite: Store, finalists: int) -> None:
    search = create(sqlite, confirmation={"finalists": finalists, "seeds": 3, "iterations": 300, "distillers": ["pkd"]})
    drive(sqlite, with_fitnets_first)
    found = outcome(sqlite, search)
    entrants = found["confirmations"][::3]
    (first,) = [one["index"] for one in found["candidates"] if one["policy"] == FITNETS]
    assert found["candidates"][first]["stage"] != "reference"
    assert [(one["name"], one["role"]) for one in entrants[:3]] == [("none", "alone"), ("pkd", "reference"), ("fitnets", "reference")]
    assert entrants[2]["candidate"] == first
    assert [one["role"] for one in entrants[3:]] == ["searched"] * finalists
    assert all(one["name"] == f"candidate {one['candidate']}" for one in entrants[3:])
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert (result.metrics["returned"], result.metrics["reference"]["name"]) == ("reference", "fitnets")
    assert "fitnets, the best of 2 hand-designed policies" in result.metrics["verdict"]
    assert {row["name"]: row["formula"] for row in result.metrics["rows"]}["fitnets"] == "l2(global)"


def test_the_best_of_all_other_hand_designed_policies_is_confirmed_wherever_it_is_from(sqlite: Store) -> None:
    named = [to_json(named_policies()[name].policy) for name in ("none", "pkd", "defeat")]
    search = create(sqlite, references=named)
    drive(sqlite, with_fitnets_first)
    found = outcome(sqlite, search)
    assert {one["name"] for one in found["confirmations"] if one["role"] == "reference"} == {"pkd", "fitnets"}
    assert len(found["confirmations"]) == expected_students(search_spec(references=named)), "as its preview said"


def test_a_search_that_trained_hand_designed_policies_alone_says_so(sqlite: Store) -> None:
    def row(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        if candidate["policy"] == FITNETS or candidate["index"] < 2:
            return with_fitnets_first(candidate, spec)
        return {"index": candidate["index"], "failure": {"kind": "not_finite", "detail": "step 1"}}

    search = create(sqlite)
    drive(sqlite, row)
    found = outcome(sqlite, search)
    assert found["state"] == "SUCCEEDED"
    assert {one["name"] for one in found["confirmations"]} == {"none", "pkd", "fitnets"}
    with sqlite.read() as session:
        result = results.of_search(session, search)
    assert (result.metrics["searched"], result.metrics["reference"]["name"]) == (None, "fitnets")
    assert result.metrics["verdict"].endswith("The search trained no policy of its own: those that it measured are hand-designed.")


def test_its_report_has_everybody_and_what_failed_with_the_seeds_that_were_measured(sqlite: Store) -> None:
    def lose_one(candidate: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        row = confirmed_as({PKD: [21.0, 22.0, 23.0], FIRST: [24.0, 25.2, 25.9], SECOND: [28.0, 29.0, 29.9]})(candidate, spec)
        if spec["kind"] == "confirm" and candidate["index"] == SECOND and spec["seed"] == 7:
            row |= dict.fromkeys(("ap", "ap50", "ap75", "images", "resampled_ap")) | {"failure": {"kind": "not_finite", "detail": "loss"}}
        return row

    search = create(sqlite)
    drive(sqlite, lose_one)
    with sqlite.read() as session:
        result = results.of_search(session, search)
        assert result is not None
        data = report_of(session, result)
    table = {row.name: row for row in data.rows}
    lost, best = (next(one for one in result.metrics["rows"] if one["entrant"] == number) for number in (SECOND, FIRST))
    assert list(table) == ["student alone", "student, pkd", "student, searched policy", f"student, {lost['name']}"]
    assert (table["student, searched policy"].ap, table["student, searched policy"].interval[1:]) == (
        (24.0, 25.2, 25.9),
        tuple(best["interval"]),
    )
    assert (table[f"student, {lost['name']}"].seeds, table[f"student, {lost['name']}"].ap) == ((6, 8), (28.0, 29.9))
    assert len(data.candidates) == result.evidence["candidates"]["proposed"]
    assert data.verdict.sentence == result.metrics["verdict"]
    assert {one.first for one in data.verdict.comparisons} <= set(table)
    html = page(data)
    assert "student, searched policy − student alone" in html
    assert "What the search teaches" in html
