"""Stage 1 by hand: who is a parent, what migrates, and which island is at an end."""

import random

import pytest

from detkds_core.evolution import Candidate, Job, Outcome
from detkds_core.evolution.history import History
from detkds_core.evolution.islands import STALE, draw, is_finished, islands_by_claim
from detkds_core.policy import Policy

from .worlds import EVERY, SPACE, make_spec


def history(aps, **changes):
    """Single terms of islands, (island, AP) each, all at the lowest rung, in this order; the terms are the first ones of the
    space. Any of those that may be a parent is as likely as another."""
    made = History(make_spec(**{"calibration": 0, "group": len(aps), "tournament": 1, **changes}))
    terms = {island: SPACE.terms(island) for island in EVERY}
    new = tuple(Candidate(index, Policy((next(terms[island]),)), "stage1", island, (), "sample") for index, (island, _) in enumerate(aps))
    made.asked(Job(0, 0, 0, tuple(range(len(aps))), new))
    made.told(0, {index: Outcome(ap) for index, (_, ap) in enumerate(aps)})
    return made


def draws(made, island, count=400):
    rng = random.Random(0)
    return [draw(made, island, rng) for _ in range(count)]


def test_the_best_of_long_ago_is_no_parent_any_more():
    aps = [("logits", 99.0), *(("logits", 20.0 + index) for index in range(9))]
    parents = {index for _, parents, operator in draws(history(aps, population=4), "logits") if operator == "mutate" for index in parents}
    assert parents == {6, 7, 8, 9}
    whole = {index for _, parents, operator in draws(history(aps, population=10), "logits") if operator == "mutate" for index in parents}
    assert whole == set(range(10))


@pytest.mark.parametrize(("island", "sources"), [("global", {"fgbg", "instance"}), ("logits", set())])
def test_genes_migrate_between_feature_islands_alone(island, sources):
    made = history([(each, 20.0) for each in EVERY for _ in range(8)])
    migrated = [(term, parents) for term, parents, operator in draws(made, island) if operator == "migrate"]
    assert {made.candidates[parents[1]].island for _, parents in migrated} == sources
    for term, (own, migrant) in migrated:
        (mine,), (theirs,) = made.candidates[own].policy.terms, made.candidates[migrant].policy.terms
        assert term.knowledge == island
        assert term.distance in (mine.distance, theirs.distance)


def test_an_island_without_a_new_best_for_long_is_finished_and_stops():
    stale = [("global", 50.0), *(("global", 40.0) for _ in range(STALE))]
    others = [("fgbg", 1.0)] * STALE
    made = history([*stale, *others], knowledge=("global", "fgbg"))
    assert is_finished(made, "global")
    assert islands_by_claim(made) == ["fgbg"], "though it earns less"
    assert islands_by_claim(made, finished=True) == ["global"]
    better = history([*stale, ("global", 51.0), *others], knowledge=("global", "fgbg"))
    assert not is_finished(better, "global")
    assert islands_by_claim(better) == ["global", "fgbg"]
