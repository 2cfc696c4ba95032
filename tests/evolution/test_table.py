"""A made-up table as a space: what it admits, what it measures, and that a search finds its best policy."""

import copy
import random

import pytest

from detkds_core.evolution import Evolution, Job, Outcome, Spec
from detkds_core.evolution.landscapes import found, search
from detkds_core.evolution.spec import Candidate
from detkds_core.evolution.table import Table, in_common
from detkds_core.policy import Policy, Term, to_json

SCALES = ("none", "scale_r2", "local_s2")
NORMS = ("none", "norm_HW", "norm_C", "standardize")


def term(scale, norm, weight=1.0, knowledge="global"):
    return Term(knowledge, ("none", scale, norm), "l2", weight, balanced=True)


SINGLES = [term(scale, norm, weight) for scale in SCALES for norm in NORMS for weight in (0.1, 1.0)]
LOGITS = [Term("logits", (norm,), "l1", weight, balanced=True) for norm in ("none", "standardize") for weight in (0.1, 1.0)]
PAIRS = [(SINGLES[3], LOGITS[0]), (SINGLES[23], LOGITS[3])]
POLICIES = [Policy(()), *(Policy((one,)) for one in (*SINGLES, *LOGITS)), *map(Policy, PAIRS)]
BEST = len(POLICIES) - 1


def made_up():
    """What `tabular.py merge` writes: AP 20 + row / 10 at the full proxy, with seed 2 one more; row 2 is refused and row 3 does what row 1
    does."""
    rows = []
    for policy in POLICIES:
        of = {"island": policy.terms[0].knowledge if len(policy.terms) == 1 else None} if policy.terms else {"name": "none"}
        rows.append({**of, "formula": "", "policy": to_json(policy)})
    runs = {}
    for seed in (1, 2):
        for rung in (15, 60):
            runs[f"{rung} {seed}"] = [{"ap": (20 + row / 10 + (seed == 2)) * rung / 60, "seconds": 1.0} for row in range(len(POLICIES))]
        for row, one in enumerate(runs[f"15 {seed}"]):
            one |= {"look": {"loss": 1.0}, "rejected": {2: "descent", 3: "duplicate"}.get(row), "same_as": 1 if row == 3 else None}
    return {"rungs": [15, 60], "seeds": [1, 2], "policies": rows, "runs": runs}


TABLE = Table(made_up())


def spec(**changes):
    fields = {
        "knowledge": TABLE.knowledge,
        "budget": 600,
        "seed": 0,
        "references": (Policy(()),),
        "space": TABLE,
        "rungs": (15, 60),
        "group": 4,
        "audit": 0.0,
    }
    return Spec(**(fields | changes))


def outcomes(rows, rung=0, replicate=0, gates=True, doubles=True, **changes):
    """What the table tells of a job whose new candidates are these rows."""
    evolution = Evolution(spec(**changes))
    new = tuple(Candidate(place, TABLE.policies[row], "stage1") for place, row in enumerate(rows))
    job = Job(0, rung, replicate, tuple(range(len(rows))), new)
    evolution._view.asked(job)
    return TABLE.measured(evolution, job, gates=gates, doubles=doubles)


def test_single_terms_are_its_own():
    assert TABLE.knowledge == ("global", "logits")
    assert list(TABLE.terms("global")) == SINGLES
    assert TABLE.weights("logits") == [0.1, 1.0]
    assert TABLE.has(SINGLES[0])
    assert not TABLE.has(term("none", "none", 0.2))
    assert TABLE.admits(Policy((term("none", "none", 0.2),))) is None
    assert TABLE.admits(Policy(SINGLES[:2])) is None, "one term of each knowledge"


def test_a_combination_stands_for_the_member_with_most_in_common():
    assert TABLE.admits(Policy(PAIRS[0])) == Policy(PAIRS[0])
    # with the second pair it shares l2, none, norm and weight, and of logits all; with the first l2 and none
    wanted = Policy((term("none", "standardize", 1.0), LOGITS[3]))
    assert TABLE.admits(wanted) == Policy(PAIRS[1])


def test_genes_in_common_by_hand():
    assert in_common(term("none", "norm_C"), term("none", "norm_C")) == 5
    assert in_common(term("none", "norm_C"), term("scale_r2", "norm_C", 0.1)) == 3


def test_a_mutant_shares_more_than_a_sample():
    rng = random.Random(0)
    parent = SINGLES[0]
    mutants = [in_common(parent, TABLE.mutate(rng, parent)) for _ in range(200)]
    samples = [in_common(parent, TABLE.sample(rng, "global")) for _ in range(200)]
    assert sum(mutants) > sum(samples) + 100


def test_the_truth_is_the_mean_of_the_seeds():
    assert TABLE.worth(Policy(())) == pytest.approx(20.5)
    assert TABLE.worth(POLICIES[BEST]) == pytest.approx(20.5 + BEST / 10)


def test_replicates_are_seeds_and_start_at_the_searches_own():
    assert outcomes([10], rung=1) == {0: Outcome(21.0)}
    assert outcomes([10], rung=1, replicate=1) == {0: Outcome(22.0)}
    assert outcomes([10], rung=1, seed=1) == {0: Outcome(22.0)}
    assert outcomes([10]) == {0: Outcome(21.0 / 4)}


def test_gates_refuse_and_doubles_are_told():
    assert outcomes([1, 2, 3]) == {0: Outcome(20.1 / 4), 1: Outcome(None, rejected="descent"), 2: Outcome(None, same_as=0)}
    assert outcomes([3, 1])[1] == Outcome(None, same_as=0), "whichever comes first"
    assert outcomes([2, 3], gates=False, doubles=False) == {0: Outcome(20.2 / 4), 1: Outcome(20.3 / 4)}


def test_a_search_finds_its_best_policy():
    evolution = search(TABLE, spec(budget=2400), gates=True, doubles=True)
    assert found(TABLE, evolution) == TABLE.worth(POLICIES[BEST])


def test_a_hole_is_refused():
    data = copy.deepcopy(made_up())
    data["runs"]["60 2"][5] = None
    with pytest.raises(ValueError, match=r"runs\['60 2'\]: 1 of 31 measurements are missing"):
        Table(data)


def test_what_the_gates_refuse_was_trained_all_the_same():
    assert TABLE.gates() == {"descent": (2, 0)}, "row 2, one of the worst, with both seeds"
    data = made_up()
    for seed in (1, 2):
        data["runs"][f"15 {seed}"][BEST] |= {"rejected": "descent"}
        data["runs"][f"15 {seed}"][BEST - 20] |= {"rejected": "gradient"}
    assert Table(data).gates() == {"descent": (4, 2), "gradient": (2, 0)}


def test_how_well_a_rung_orders_is_seen_against_another_seed():
    data = made_up()
    assert Table(data).taus() == {(15, "ap"): 1.0, (15, "lenient_ap"): 0.0, (60, "ap"): 1.0}
    for row, one in enumerate(data["runs"]["15 1"]):
        one["ap"], one["lenient_ap"] = -float(row), float(row)
    taus = Table(data).taus()
    assert taus[15, "ap"] == 0.0, "backwards with one seed, rightly with the other"
    assert taus[15, "lenient_ap"] == 0.5, "rightly with one seed, not there with the other"
    with pytest.raises(ValueError, match="seeds: one is no other"):
        Table(data | {"seeds": [1]}).taus()
