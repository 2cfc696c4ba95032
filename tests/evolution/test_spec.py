"""Specs, proposals and results: what is refused, and that JSON gives the same back."""

import json
import math

import pytest

from detkds_core.evolution import Proposal, Result, Spec
from detkds_core.policy import Policy, SearchSpace, Term

SPACE = SearchSpace(knowledge=("global", "logits"), images_per_batch=8, has_edges=False)
PKD = Policy((Term("global", ("none", "none", "standardize"), "l2", 5.0),))


def make_spec(**changes):
    fields = {
        "knowledge": ("global", "logits"),
        "candidates": 30,
        "parallelism": 4,
        "seed": 7,
        "references": (Policy(()), PKD),
        "space": SPACE,
    }
    return Spec(**(fields | changes))


def test_json_round_trips():
    spec = make_spec(stage2_share=0.5, floor=0.1)
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    proposal = Proposal(3, PKD, "stage1", "global", (0, 1), "mutate")
    assert Proposal.from_json(json.loads(json.dumps(proposal.to_json()))) == proposal
    for result in (Result(28.5), Result(None, "not_finite")):
        assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_what_the_json_leaves_out_takes_its_default():
    data = make_spec().to_json()
    for name in ("stage2_share", "floor", "population", "tournament"):
        del data[name]
    assert Spec.from_json(data) == make_spec()


def test_json_names_the_key_that_is_wrong():
    data = make_spec().to_json()
    with pytest.raises(ValueError, match=r"spec\.budget: not known; one of knowledge, candidates"):
        Spec.from_json(data | {"budget": 3})
    del data["seed"]
    with pytest.raises(ValueError, match=r"spec\.seed: missing"):
        Spec.from_json(data)
    with pytest.raises(ValueError, match=r"result\.fitness: missing"):
        Result.from_json({"failure": "bug"})
    with pytest.raises(ValueError, match=r"proposal\.stage: 'stage3' is not a stage; one of reference, stage1, stage2"):
        Proposal.from_json(Proposal(0, PKD, "reference").to_json() | {"stage": "stage3"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knowledge": ()}, "at least one knowledge"),
        ({"knowledge": ("global", "fgbg")}, r"spec.knowledge\[1\]: 'fgbg' is not in the search space; one of global, logits"),
        ({"knowledge": ("global", "logits", "global")}, r"spec.knowledge\[2\]: 'global' appears twice"),
        ({"references": (PKD, Policy(()), PKD)}, r"spec.references\[2\]: the same policy as references\[0\]"),
        ({"candidates": 2}, "2 leaves nothing to search after 2 references; at least 3"),
        ({"parallelism": 0}, "spec.parallelism: at least 1, got 0"),
        ({"stage2_share": 1.0}, "spec.stage2_share: at least 0 and below 1"),
        ({"floor": 0.6}, "0.6 for each of 2 islands is more than the whole"),
        ({"population": 0}, "spec.population and spec.tournament: at least 1"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_spec(**changes)


@pytest.mark.parametrize("fitness", [math.nan, math.inf])
def test_a_fitness_is_finite(fitness):
    with pytest.raises(ValueError, match="not finite; an infeasible candidate has fitness None"):
        Result(fitness)


@pytest.mark.parametrize(
    ("candidates", "share", "stages"), [(3, 0.35, (1, 0)), (5, 0.35, (2, 1)), (42, 0.35, (26, 14)), (10, 0.99, (1, 7)), (10, 0.0, (8, 0))]
)
def test_shares_of_the_stages_by_hand(candidates, share, stages):
    spec = make_spec(candidates=candidates, stage2_share=share)
    assert (spec.stage1_candidates, spec.stage2_candidates) == stages
