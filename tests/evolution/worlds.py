"""Searches over worlds that cost nothing: what a policy is worth follows from its text alone."""

import hashlib
import math
import random
from collections import deque

from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.policy import Policy, SearchSpace, Term, canonical_json

EVERY = ("global", "fgbg", "instance", "logits", "localization")
PKD = Policy((Term("global", ("none", "none", "standardize"), "l2", 5.0),))
NONE = Policy(())
SPACE = SearchSpace(knowledge=EVERY, images_per_batch=8, has_edges=True)
RUNGS = (10, 30, 90)


def uniform(*parts):
    """A number in 0-1 that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") / 2**64


def gain(world, term):
    """What one term adds to AP: the sum of its genes' effects, times how near its weight is to the formula's own best one."""
    places = {"distance": term.distance, **{f"transform {i}": name for i, name in enumerate(term.transforms)}}
    genes = sum(uniform(world, term.knowledge if "transform" in place else "any", place, name) - 0.35 for place, name in places.items())
    best_weight = 10 ** (2.5 * uniform(world, "weight", term.transforms[-1], term.distance) - 1)
    distance = math.log2(term.weight / best_weight)
    return 4 * genes * math.exp(-((distance / 2.5) ** 2)) - max(0.0, distance - 3)


def quality(world, policy):
    """AP without noise: 25 and the gains of the terms, of which all but the largest lose half: they teach partly the same."""
    gains = sorted((gain(world, term) for term in policy.terms), reverse=True)
    overlap = sum(0.5 * max(0.0, value) for value in gains[1:])
    return 25 + sum(gains) - overlap


def measure(world):
    """Outcomes of a world in which one candidate in twelve is infeasible, one in ten refused and one in ten another's double."""

    def outcome(policy, job, earlier):
        key = canonical_json(policy)
        fate = uniform(world, "fate", key)
        if policy.terms and job.new:
            if fate < 1 / 12:
                return Outcome(None, failure="not_finite")
            if fate < 2 / 11:
                return Outcome(None, rejected="descent", sketch=(1.0,))
            if fate < 0.28 and earlier:
                return Outcome(None, same_as=earlier[int(uniform(world, "double", key) * len(earlier))])
        noise = random.Random(f"{world} {key} {job.rung} {job.replicate}").gauss(0, 0.4)
        return Outcome(round(quality(world, policy) * (0.5 + 0.25 * job.rung) + noise, 3), sketch=(fate,))

    return outcome


def told(evolution, job, outcome):
    """What a world says of a job."""
    measured = [index for one in evolution.jobs[: job.index] for index in one.members if index not in job.members]
    doubles = {index for outcomes in evolution.results.values() for index, one in outcomes.items() if one.ap is None}
    earlier = sorted(set(measured) - doubles) if len(evolution.results) >= job.index else []
    return {index: outcome(evolution.candidates[index].policy, job, earlier) for index in job.members}


def run(spec, outcome, in_flight=None, logged=False):
    """Run a search to its end with at most `in_flight` jobs at once (default: as many as ask gives); the finished evolution."""
    evolution = Evolution(spec, logged=logged)
    waiting = deque()
    while not evolution.finished:
        while (in_flight is None or len(waiting) < in_flight) and (job := evolution.ask()) is not None:
            waiting.append(job)
        if not waiting:
            break
        job = waiting.popleft()
        evolution.tell(job.index, told(evolution, job, outcome))
    assert evolution.finished
    return evolution


def make_spec(**changes):
    """A spec with everything at hand; the test names what matters to it."""
    fields = {
        "knowledge": EVERY,
        "budget": 3000,
        "group": 3,
        "parallelism": 2,
        "seed": 0,
        "references": (NONE, PKD),
        "space": SPACE,
        "rungs": RUNGS,
    }
    return Spec(**(fields | changes))
