"""What a search may begin with from earlier ones: their best policies, those of them that its pair can run and its space admits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple

from pydantic import BaseModel
from sqlalchemy.orm import Session

from detkds_api.caller import Caller
from detkds_api.pairing import Pairing
from detkds_api.problems import FieldError, invalid, pointer
from detkds_core.policy import Policy, PolicyError, SearchSpace, Term, canonical_json, from_json
from detkds_core.store import results, searches
from detkds_core.store.ids import is_id
from detkds_core.store.models import Candidate, Search

TERMS = 3  # policies of one term, an island
COMBINATIONS = 4


class WarmStart(BaseModel):
    """What earlier searches give a new one. policies: that it begins with; left_out: why others cannot be used, and how many."""

    policies: int
    left_out: dict[str, int]


class Seeds(NamedTuple):
    """Policies that a search begins with, the most promising first, and why others cannot be used, with how many."""

    policies: tuple[Policy, ...]
    left_out: dict[str, int]

    def view(self) -> WarmStart:
        return WarmStart(policies=len(self.policies), left_out=self.left_out)


def named_searches(session: Session, caller: Caller, ids: Sequence[str]) -> list[Search]:
    """The searches that a request names, by their ids or their results'. Raises InvalidInput for every one that gives nothing."""
    errors: list[FieldError] = []
    found: dict[str, Search] = {}
    for place, one in enumerate(ids):
        search = named_search(session, caller, one)
        if isinstance(search, str):
            errors.append(FieldError(pointer("warm_start", place), search))
        elif search.id in found:
            errors.append(FieldError(pointer("warm_start", place), f"search {search.id} is named twice"))
        else:
            found[search.id] = search
    if errors:
        raise invalid(errors)
    return list(found.values())


def named_search(session: Session, caller: Caller, one: str) -> Search | str:
    """The search of an id, or why there is none and what would be right."""
    search = searches.get(session, one, owner=caller.sees) if is_id(one) else None
    if search is None:
        result = results.get(session, one, owner=caller.sees) if is_id(one) else None
        if result is None:
            return f"there is no search and no result {one!r}; GET /searches?state=SUCCEEDED lists those that can be named"
        if result.search_id is None:
            return f"{one} is the result of a distillation; name a search that has SUCCEEDED, or its result"
        search = searches.get(session, result.search_id)
        assert search is not None, "a result's search is there"
    if search.state != "SUCCEEDED":
        return f"search {search.id} is {search.state}; only one that has SUCCEEDED can be named"
    return search


def best_policies(session: Session, search: Search, *, sealed: bool) -> Iterator[tuple[Policy | None, bool]]:
    """What a search found, the most promising first, and whether it was searched: the confirmed policy, then by the highest rung and AP.

    Without the weights that its trainings found, which are its pair's alone. At most TERMS different formulas an island, and COMBINATIONS.
    sealed: the confirmed policy takes no precedence, since it was chosen on the report images, which the new search reports on as well.
    None: a policy that this version of the language does not read.
    """
    candidates = {one.index: one for one in searches.all_candidates(session, search.id)}
    result = results.of_search(session, search.id)
    if result is not None and not sealed:
        index = (result.metrics.get("winner") or {}).get("candidate")
        winner = candidates.get(index) if index is not None else None
        yield readable(winner.policy if winner else result.policy), winner is not None and winner.stage != "reference"
    measured = [one for one in candidates.values() if one.state == "MEASURED" and one.stage != "reference"]
    taken: Counter[str] = Counter()
    formulas: set[Policy] = set()
    for candidate in sorted(measured, key=rank):
        policy = readable(candidate.policy)
        kind = kind_of(policy) if policy else ""
        most = TERMS if policy and len(policy.terms) == 1 else COMBINATIONS
        if policy and (taken[kind] == most or unweighted(policy) in formulas):
            continue
        taken[kind] += 1
        if policy:
            formulas.add(unweighted(policy))
        yield policy, True


def rank(one: Candidate) -> tuple[int, float, int]:
    """Best first: the higher rung, the higher AP, the lower index."""
    return (-(one.rung or 0), -(one.ap or 0.0), one.index)


def readable(document: dict[str, object]) -> Policy | None:
    try:
        return from_json(document)
    except PolicyError:
        return None


def kind_of(policy: Policy) -> str:
    """What the most of it are counted by: the island of a single term, or that it is a combination."""
    return policy.terms[0].knowledge if len(policy.terms) == 1 else "combination"


def unweighted(policy: Policy) -> Policy:
    return Policy(tuple(replace(term, weight=1.0) for term in policy.terms), policy.distillers)


def seeds(session: Session, sources: Sequence[Search], pairing: Pairing, space: SearchSpace, references: Sequence[Policy]) -> Seeds:
    """The best policies of several searches, by turns, that a search over this space can begin with."""
    each = [best_policies(session, one, sealed=same_data(one, pairing.dataset)) for one in sources]
    known = {canonical_json(policy) for policy in references}
    chosen: list[Policy] = []
    taken: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for found, searched in (one for turn in zip_longest(*each) for one in turn if one is not None):
        if found == Policy(()):
            continue
        policy = own_weights(found, space) if found and searched else found
        if policy is None:
            left_out["this version of the policy language does not read it"] += 1
        elif why := why_not(policy, pairing, space):
            left_out[why] += 1
        elif (key := canonical_json(policy)) not in known:
            kind = kind_of(policy)
            if taken[kind] < (TERMS if len(policy.terms) == 1 else COMBINATIONS):
                known.add(key)
                taken[kind] += 1
                chosen.append(policy)
    return Seeds(tuple(chosen), dict(left_out))


def same_data(search: Search, dataset: Mapping[str, Any]) -> bool:
    """Whether a search may have reported on images of this dataset."""
    return search.dataset == dataset["name"] or bool(search.dataset_digest and search.dataset_digest == dataset.get("digest"))


def why_not(policy: Policy, pairing: Pairing, space: SearchSpace) -> str | None:
    """Why a search cannot begin with a policy; None if it can."""
    if policy.distillers:
        return "it has learned parts, which no search varies"
    reasons = pairing.cannot_run(policy)
    if reasons:
        return reasons[0][1]
    for term in policy.terms:
        if term.knowledge not in space.knowledge:
            return f"this search leaves {term.knowledge!r} out"
    return None if space.admits(policy) is not None else "its terms are not legal together"


def own_weights(policy: Policy, space: SearchSpace) -> Policy:
    """The policy as a space of ratios writes it: a fixed weight, which says nothing on another pair, becomes the ratio 1."""

    def own(term: Term) -> Term:
        return term if term.balanced or term.auto else replace(term, weight=1.0, balanced=True)

    return replace(policy, terms=tuple(map(own, policy.terms))) if space.balanced else policy
