"""Hypothesis strategies for legal terms and policies, options included."""

from dataclasses import replace

from hypothesis import strategies as st

from detkds_core.policy import Policy, Term, check, legality
from detkds_core.policy.vocabulary import DISTANCES, KNOWLEDGE, SLOTS

WEIGHTS = st.floats(1e-6, 1000, allow_nan=False) | st.sampled_from([0.1, 1.0, 2.0, 10.0, 1000.0])


@st.composite
def terms(draw) -> Term:
    """A legal term. Options stand only where they do something."""
    knowledge = draw(st.sampled_from(KNOWLEDGE))
    names = st.tuples(*(st.sampled_from(choices) for _, choices in SLOTS[knowledge]))
    distance = draw(st.sampled_from(DISTANCES[knowledge]))
    term = draw(names.map(lambda transforms: Term(knowledge, transforms, distance, 1.0)).filter(lambda term: not legality(term)))
    term = replace(
        term,
        weight=draw(WEIGHTS),
        warm_up=draw(st.sampled_from([0, 0, 500]) | st.integers(0, 10_000_000)),
        stop=draw(st.sampled_from([1.0, 1.0, 0.93]) | st.floats(1e-6, 1)),
    )
    if distance in ("kl", "kl_edges"):
        term = replace(term, temperature=draw(st.sampled_from([1.0, 2.0, 10.0]) | st.floats(0.01, 100)))
    if term.transforms[0] in ("satt", "catt"):
        term = replace(term, shared_attention=draw(st.booleans()))
    if knowledge == "fgbg":
        term = replace(term, background=draw(st.sampled_from([0.0, 0.5, 4.0]) | st.floats(0, 1000)))
    assert not legality(term)
    return term


def policies(max_size: int = 5) -> st.SearchStrategy[Policy]:
    """A legal policy, also with terms that are the same loss."""
    lists = st.lists(terms(), max_size=max_size)
    doubled = st.tuples(lists, WEIGHTS).map(lambda pair: [*pair[0], *(replace(term, weight=pair[1]) for term in pair[0][:1])])
    return (lists | doubled).map(tuple).map(Policy).filter(lambda policy: not check(policy))
