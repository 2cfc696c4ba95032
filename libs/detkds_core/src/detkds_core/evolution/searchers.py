"""The algorithms of a search: what each has measured next, given its history. All share the evaluator, its cache and the budget.

`detkds` is the search of this project; the others are what it is compared with: random policies, the same with successive halving and
the same gates, plain regularized evolution, and the genetic algorithm of the authors' sibling project, which scores its whole population
anew in every iteration. Optuna's samplers are in `optuna_searchers`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from detkds_core.evolution.combinations import propose_combination
from detkds_core.evolution.history import History, generator, tournament
from detkds_core.evolution.islands import propose_on, propose_term
from detkds_core.evolution.optuna_searchers import sampled_policy
from detkds_core.evolution.rungs import CLIMB_SHARE, calibrating, climbed, promotions, replication
from detkds_core.evolution.spec import Candidate, Stage
from detkds_core.policy import Policy

Propose = Callable[[History, random.Random], Candidate | None]
ATTEMPTS = 50
FEW, EVOLVING = 80, 290  # candidates at the lowest rung that a budget pays for: no stage 1 for so few; all of it for so many more
SPARED = 2  # candidates that stage 1 proposes less for each hand-designed policy among the references
STARTUP = 10  # random policies before the Parzen estimator, Optuna's own number


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure next: candidates at a rung with the seed of a replicate. `new` of them nobody proposed before."""

    rung: int
    replicate: int
    members: tuple[int, ...]
    new: tuple[Candidate, ...] = ()


def plan(history: History) -> Plan | None:
    """What the search's algorithm has measured next; None when it has nothing left, or not the budget."""
    return ALGORITHMS[history.spec.algorithm](history)


# --- candidates by proposal -------------------------------------------------------------------------------------------


def newcomers(history: History, propose: Propose, rung: int, count: int | None = None) -> Plan | None:
    """New candidates at a rung: the references first, then what is proposed. None when nothing new is left or may be."""
    spec = history.spec
    wanted = min(count or spec.group, history.limit - history.count if history.limit is not None else spec.group)
    most = affordable(history, rung, look=True)
    while len(history.drafts) < min(wanted, most):
        rng = generator(spec.seed, history.count)
        candidate = reference(history) or propose(history, rng)
        if candidate is None:
            break
        audit = spec.halves and generator(spec.seed, "audit", history.count).random() < spec.audit
        history.drafts.append(replace(candidate, audit=audit))
    new = tuple(history.drafts)
    return Plan(rung, 0, tuple(one.index for one in new), new) if new else None


def affordable(history: History, rung: int, *, look: bool = False) -> int:
    """How many candidates the rest of the budget pays for at a rung, and a look at each; a way up to the full proxy is kept for one."""
    spec = history.spec
    left = history.budget - history.spent - way_up(history, rung)
    return max(0, int(left // (spec.rungs[rung] + look * spec.look)))


def way_up(history: History, rung: int) -> int:
    """What one candidate needs from a rung to the full proxy, until somebody has got there: a search without any finds nothing."""
    spec = history.spec
    if not spec.halves or history.entered[spec.top]:
        return 0
    return sum(spec.rungs[higher] for higher in climbed(history) if higher > rung)


def reference(history: History) -> Candidate | None:
    """The reference whose turn it is."""
    references = history.spec.references
    return Candidate(history.count, references[history.count], "reference") if history.count < len(references) else None


def seeds_first(propose: Propose) -> Propose:
    """The seeds as they are, right after the references, then what is proposed."""

    def proposed(history: History, rng: random.Random) -> Candidate | None:
        spec, place = history.spec, history.count - len(history.spec.references)
        if place < len(spec.seeds) and (policy := spec.space.admits(spec.seeds[place])) is not None:
            return Candidate(history.count, policy, stage_of(policy), island_of(policy), (), "warm")
        return propose(history, rng)

    return proposed


def random_policy(history: History, rng: random.Random) -> Candidate | None:
    """One to three terms of different knowledge, each any formula and weight."""
    spec = history.spec
    for _ in range(ATTEMPTS):
        size = min(rng.choice((1, 1, 1, 2, 2, 3)), len(spec.knowledge))
        islands = rng.sample(spec.knowledge, size)
        policy = spec.space.admits(Policy(tuple(spec.space.sample(rng, island) for island in islands)))
        if policy is not None and history.is_new(policy):
            return Candidate(history.count, policy, stage_of(policy), island_of(policy), (), "sample")
    return None


def stage_of(policy: Policy) -> Stage:
    return "stage1" if len(policy.terms) == 1 else "stage2"


def island_of(policy: Policy) -> str | None:
    return policy.terms[0].knowledge if len(policy.terms) == 1 else None


# --- the search of this project ---------------------------------------------------------------------------------------


def divide_and_conquer(history: History, rng: random.Random) -> Candidate | None:
    """Single terms on islands, then their combinations. A stage with nothing new left hands its budget to the other one, and so does the
    first once all islands are finished; these are searched on when nothing else is left."""
    stages = [propose_term, propose_combination]
    if history.spent >= history.since + stage1_share(history) * (new_budget(history) - history.since) - spared(history):
        for island in history.untried:  # with many references, stage 1 may end before their turn
            if (candidate := propose_on(history, island, rng)) is not None:
                return candidate
        stages.reverse()
    return stages[0](history, rng) or stages[1](history, rng) or propose_term(history, rng, finished=True)


def stage1_share(history: History) -> float:
    """Part of the budget for new candidates that stage 1 may spend, beyond the term or two with which every island begins.

    Nothing where the budget pays for few candidates: they hardly evolve, and combinations of what is there are better (docs/benchmarks.md).
    """
    spec = history.spec
    paid = history.budget / spec.rungs[0]
    return max(0.0, min(1 - spec.stage2_share, (paid - FEW) / EVOLVING)) if spec.stage2_share else 1


def spared(history: History) -> float:
    """What stage 1 need not spend, since hand-designed policies were measured that combine as well as what it would find; once."""
    spec = history.spec
    if history.since or not spec.stage2_share:
        return 0
    return SPARED * spec.rungs[0] * sum(policy != Policy(()) for policy in spec.references)


def new_budget(history: History) -> float:
    """How much may be spent while new candidates are begun; the rest is for those that climb. Of an extension likewise."""
    share = 1 - CLIMB_SHARE if history.spec.halves else 1
    return history.since + (history.budget - history.since) * share


def begun(history: History, rung: int) -> int:
    """How many a group begins with: no more than what is left for new candidates pays for, at least one, and a calibration whole."""
    spec = history.spec
    paid = math.ceil((new_budget(history) - history.spent) / (spec.rungs[rung] + spec.look))
    return min(spec.group, max(1, paid, calibrating(history) - history.count))


def climbing(history: History, *, closing: bool) -> Plan | None:
    """Those that are promoted and paid for, a rung higher."""
    for rung, members in promotions(history, closing=closing) if history.spec.halves else ():
        if paid := members[: affordable(history, rung)]:
            return Plan(rung, 0, tuple(paid))
    return None


def halving(propose: Propose) -> Callable[[History], Plan | None]:
    """Successive halving over what is proposed; without rungs below the full proxy, full proxies."""

    def planned(history: History) -> Plan | None:
        spec = history.spec
        full = history.limit is not None and history.count >= history.limit
        closing = full or history.spent >= new_budget(history)
        if (climb := climbing(history, closing=closing)) is not None:
            return climb
        if not closing or history.count < calibrating(history):
            rung = climbed(history)[0]
            if (new := newcomers(history, propose, rung, begun(history, rung))) is not None:
                return new
            if (climb := climbing(history, closing=True)) is not None:  # nothing new is left: too few to share a job climb now
                return climb
        if spec.halves and (again := replication(history)) is not None:
            replicate, members = again
            members = members[: affordable(history, spec.top)]
            if members:
                return Plan(spec.top, replicate, tuple(members))
        # A closed search whose best have climbed spends what is left on new candidates, if nothing is under way any more.
        if not full and history.idle:
            return newcomers(history, propose, climbed(history)[0])
        return None

    return planned


# --- what it is compared with -----------------------------------------------------------------------------------------


def full_proxies(propose: Propose) -> Callable[[History], Plan | None]:
    """Every candidate at the full proxy, once."""
    return lambda history: newcomers(history, propose, history.spec.top)


def regularized(history: History, rng: random.Random) -> Candidate | None:
    """Plain aging evolution over whole policies (Real et al. 2018): mutate the best of a few drawn from the last ones."""
    spec = history.spec
    population = [one for one in history.measured if one.candidate.policy.terms and not one.candidate.policy.distillers][-spec.population :]
    if history.count < len(spec.references) + spec.population or not population:
        return random_policy(history, rng)
    parent = tournament(rng, population, spec.tournament).candidate
    for _ in range(ATTEMPTS):
        policy = mutated(history, parent.policy, rng)
        if policy is not None and history.is_new(policy):
            return Candidate(history.count, policy, stage_of(policy), island_of(policy), (parent.index,), "mutate")
    return random_policy(history, rng)


def mutated(history: History, policy: Policy, rng: random.Random) -> Policy | None:
    """One change: a term of new knowledge, a term less, or another gene of a term; None if that is not legal."""
    spec, terms = history.spec, list(policy.terms)
    place, luck = rng.randrange(len(terms)), rng.random()
    absent = [island for island in spec.knowledge if island not in {term.knowledge for term in terms}]
    if luck < 0.2 and absent:
        terms.append(spec.space.sample(rng, rng.choice(absent)))
    elif luck < 0.3 and len(terms) > 1:
        del terms[place]
    else:
        try:
            terms[place] = spec.space.mutate(rng, terms[place])
        except ValueError:
            return None
    return spec.space.admits(Policy(tuple(terms)))


def genetic(history: History) -> Plan | None:
    """The naive genetic algorithm: every iteration scores the whole population anew, then a child and a newcomer; the better replaces the
    worst (lilujunai/Auto-DAS, `evo_kd_searcher.py`). A population of `spec.population`; an iteration costs two trainings more."""
    spec = history.spec
    if affordable(history, spec.top) < 1:
        return None
    size = min(spec.population, 20)
    first = len(spec.references)
    if history.count < first + size:
        return newcomers(history, seeds_first(random_policy), spec.top, min(spec.group, first + size - history.count))
    population = list(range(first, first + size))
    scores = {index: mine[spec.top] for index, mine in history.values.items() if spec.top in mine}
    newest = first + size
    while newest + 1 < history.count and all(
        one in scores or one in history.refused or one in history.original for one in (newest, newest + 1)
    ):
        child = max((newest, newest + 1), key=lambda index: (scores.get(index, [float("-inf")])[-1], -index))
        worst = min(population, key=lambda index: (scores.get(index, [float("-inf")])[-1], index))
        population[population.index(worst)] = child
        newest += 2
    iteration = (history.count - first - size) // 2
    rescored = {index: sum(job.rung == spec.top and index in job.members for job in history.jobs) for index in population}
    behind = [index for index in population if rescored[index] <= max(0, iteration - born(index, first + size))]
    if behind:
        members = behind[: min(spec.group, affordable(history, spec.top))]
        return Plan(spec.top, max(rescored[index] for index in members), tuple(members))

    def bred(now: History, rng: random.Random) -> Candidate | None:
        if (now.count - first - size) % 2:
            return random_policy(now, rng)
        parents = sorted(population, key=lambda index: -scores.get(index, [float("-inf")])[-1])[: size // 2]
        return crossed(now, rng.choice(parents), rng.choice(parents), rng) or random_policy(now, rng)

    return newcomers(history, bred, spec.top, 2)


def sampled(name: str, history: History, rng: random.Random) -> Candidate | None:
    """A policy from one of Optuna's samplers; a random one at the start, as all others have, and where it finds nothing new."""
    start = len(history.spec.references) + (STARTUP if name == "tpe" else history.spec.population)
    policy = sampled_policy(name, history, rng) if history.count >= start else None
    if policy is None:
        return random_policy(history, rng)
    return Candidate(history.count, policy, stage_of(policy), island_of(policy), (), "sample")


def born(index: int, first: int) -> int:
    """The iteration in which a member of the genetic algorithm came."""
    return 0 if index < first else (index - first) // 2 + 1


def crossed(history: History, a: int, b: int, rng: random.Random) -> Candidate | None:
    """A child of two policies: each knowledge from either, then half of the time a mutation."""
    mine, other = ({term.knowledge: term for term in history.candidates[index].policy.terms} for index in (a, b))
    for _ in range(ATTEMPTS):
        terms = []
        for island in history.spec.knowledge:
            pick = rng.choice((mine, other)).get(island)
            if pick is not None:
                terms.append(pick)
        policy = history.spec.space.admits(Policy(tuple(terms))) if terms else None
        if policy is not None and rng.random() < 0.5:
            policy = mutated(history, policy, rng)
        if policy is not None and history.is_new(policy):
            return Candidate(history.count, policy, stage_of(policy), island_of(policy), tuple(sorted({a, b})), "crossover")
    return None


ALGORITHMS: Mapping[str, Callable[[History], Plan | None]] = {
    "detkds": halving(seeds_first(divide_and_conquer)),
    "random": full_proxies(seeds_first(random_policy)),
    "random_halving": halving(seeds_first(random_policy)),
    "evolution": full_proxies(seeds_first(regularized)),
    "genetic": genetic,
    "tpe": full_proxies(seeds_first(partial(sampled, "tpe"))),
    "nsga2": full_proxies(seeds_first(partial(sampled, "nsga2"))),
}
