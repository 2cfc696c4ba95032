"""Specs, candidates, jobs and outcomes: what is refused, and that JSON gives the same back."""

import json
import math
from typing import get_args

import pytest

from detkds_core.evolution import Candidate, Outcome, Spec
from detkds_core.evolution.spec import Operator
from detkds_core.policy import Policy, SearchSpace, Term

from .worlds import make_spec as whole_spec
from .worlds import measure, run

SPACE = SearchSpace(knowledge=("global", "logits"), images_per_batch=8, has_edges=False)
PKD = Policy((Term("global", ("none", "none", "standardize"), "l2", 5.0),))
L1 = Policy((Term("global", ("none", "none", "none"), "l1", 1.0),))
LOCAL = Policy((Term("localization", ("none",), "giou", 1.0),))
NO_EDGES = SearchSpace(knowledge=("localization",), images_per_batch=8, has_edges=False)
EDGES = Policy((Term("localization", ("none",), "kl_edges", 1.0),))


def make_spec(**changes):
    fields = {
        "knowledge": ("global", "logits"),
        "budget": 3000,
        "seed": 7,
        "references": (Policy(()), PKD),
        "space": SPACE,
        "rungs": (10, 30, 90),
    }
    return Spec(**(fields | changes))


def test_json_round_trips():
    spec = make_spec(stage2_share=0.5, floor=0.1, candidates=40, algorithm="random_halving", seeds=(L1,))
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    candidate = Candidate(3, PKD, "stage1", "global", (0, 1), "mutate", True)
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate
    for outcome in (
        Outcome(28.5, sketch=(0.25, -1.0)),
        Outcome(None, "not_finite"),
        Outcome(None, rejected="descent"),
        Outcome(None, same_as=4),
    ):
        assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_what_the_json_leaves_out_takes_its_default():
    data = make_spec().to_json()
    for name in ("stage2_share", "floor", "population", "tournament", "algorithm", "group", "parallelism", "eta", "audit", "seeds"):
        del data[name]
    assert Spec.from_json(data) == make_spec()


def test_json_names_the_key_that_is_wrong():
    data = make_spec().to_json()
    with pytest.raises(ValueError, match=r"spec\.money: not known; one of knowledge, budget"):
        Spec.from_json(data | {"money": 3})
    del data["seed"]
    with pytest.raises(ValueError, match=r"spec\.seed: missing"):
        Spec.from_json(data)
    with pytest.raises(ValueError, match=r"outcome\.ap: missing"):
        Outcome.from_json({"failure": "bug"})
    with pytest.raises(ValueError, match=r"candidate\.stage: 'stage3' is not a stage; one of reference, stage1, stage2"):
        Candidate.from_json(Candidate(0, PKD, "reference").to_json() | {"stage": "stage3"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knowledge": ()}, "at least one knowledge"),
        ({"knowledge": ("global", "fgbg")}, r"spec.knowledge\[1\]: 'fgbg' is not in the search space; one of global, logits"),
        ({"knowledge": ("global", "global")}, r"spec.knowledge\[1\]: 'global' appears twice"),
        ({"references": (PKD, PKD)}, r"spec.references\[1\]: the same policy as references\[0\]"),
        ({"candidates": 2}, "spec.candidates: 2 leaves nothing to search after 2 references; at least 3"),
        ({"rungs": ()}, r"spec.rungs: \[\] are not rising numbers"),
        ({"rungs": (30, 10)}, r"spec.rungs: \[30, 10\] are not rising numbers"),
        ({"budget": 89}, "spec.budget: 89 iterations are less than one full proxy of 90"),
        ({"algorithm": "luck"}, "spec.algorithm: 'luck' is not known; one of detkds, random"),
        ({"group": 0}, "spec.group: at least 1, got 0"),
        ({"parallelism": 0}, "spec.parallelism: at least 1, got 0"),
        ({"eta": 1}, "spec.eta: at least 2, got 1"),
        ({"stage2_share": 1.0}, "spec.stage2_share: at least 0 and below 1"),
        ({"audit": 1.5}, "spec.audit: from 0 to 1, got 1.5"),
        ({"floor": 0.6}, "spec.floor: 0.6 for each of 2 islands is more than the whole"),
        ({"seeds": (PKD,)}, r"spec.seeds\[0\]: the same policy as references\[1\]"),
        ({"seeds": (L1, L1)}, r"spec.seeds\[1\]: the same policy as seeds\[0\]"),
        ({"seeds": (L1, Policy(()))}, r"spec.seeds\[1\]: a seed has terms and no distillers"),
        ({"seeds": (LOCAL,)}, r"spec.seeds\[0\]: 'localization' is not searched; one of global, logits"),
        ({"seeds": (EDGES,), "knowledge": ("localization",), "space": NO_EDGES}, r"spec.seeds\[0\]: the search space does not admit it"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_spec(**changes)


@pytest.mark.parametrize("ap", [math.nan, math.inf])
def test_an_ap_is_finite(ap):
    with pytest.raises(ValueError, match=r"outcome\.ap"):
        Outcome(ap)


@pytest.mark.parametrize("algorithm", ["detkds", "random", "evolution", "genetic"])
def test_every_way_to_make_a_candidate_has_its_word(algorithm):
    changes = {"rungs": (90,), "look": 0} if algorithm in ("evolution", "genetic", "random") else {}
    evolution = run(whole_spec(algorithm=algorithm, budget=6000, **changes), measure(0))
    made = {one.operator for one in evolution.candidates}
    assert made <= set(get_args(Operator))
    assert len(made) >= 2
