"""Hypothesis strategies for legal terms, distillers and policies, options included."""

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from detkds_core.policy import Distiller, Policy, Term, check, legality
from detkds_core.policy.distillers import DISTILLERS, Setting
from detkds_core.policy.space import combinations_of
from detkds_core.policy.vocabulary import DIVERGENCES, KNOWLEDGE, REGIONS

WEIGHTS = st.floats(1e-6, 1e9 / 2, allow_nan=False) | st.sampled_from([0.1, 1.0, 2.0, 10.0, 1000.0, 1e9])


SCHEDULES = st.fixed_dictionaries(
    {
        "warm_up": st.sampled_from([0, 0, 500]) | st.integers(0, 10_000_000),
        "stop": st.sampled_from([1.0, 1.0, 0.93]) | st.floats(1e-6, 1),
        "decay": st.sampled_from([1.0, 1.0, 0.0]) | st.floats(0, 1),
    }
)


@cache
def formulas(knowledge: str, region: str) -> list[Term]:
    """All legal terms with options at their defaults."""
    return [term for term in combinations_of(knowledge, "full", (region,)) if not legality(term)]


@st.composite
def terms(draw) -> Term:
    """A legal term. Options stand only where they do something."""
    knowledge = draw(st.sampled_from(KNOWLEDGE))
    term = draw(st.sampled_from(formulas(knowledge, draw(st.sampled_from(REGIONS[knowledge])))))
    term = replace(
        term,
        weight=draw(WEIGHTS),
        **draw(SCHEDULES),
        **draw(st.sampled_from([{}, {"auto": True}, {"balanced": True}])),
    )
    if term.distance in DIVERGENCES:
        term = replace(term, temperature=draw(st.sampled_from([1.0, 2.0, 10.0]) | st.floats(0.01, 100)))
    if term.transforms[0] in ("satt", "catt"):
        term = replace(term, shared_attention=draw(st.booleans()))
    if knowledge == "fgbg":
        term = replace(term, background=draw(st.sampled_from([0.0, 0.5, 4.0]) | st.floats(0, 1000)))
    if draw(st.booleans()) and not legality(summed := replace(term, reduction="sum")):
        term = summed
    assert not legality(term)
    return term


@st.composite
def distillers(draw) -> Distiller:
    """A legal distiller, with some of its settings."""
    name = draw(st.sampled_from(list(DISTILLERS)))
    known = DISTILLERS[name].settings
    names = draw(st.lists(st.sampled_from(sorted(known)), unique=True)) if known else []
    settings = tuple((one, draw(values(known[one]))) for one in sorted(names))
    return Distiller(name, settings, draw(st.just(1.0) | WEIGHTS), draw(st.booleans()), **draw(st.just({}) | SCHEDULES))


def values(setting: Setting) -> st.SearchStrategy[float]:
    inside = st.integers(int(setting.low), int(setting.high)).map(float) if setting.whole else st.floats(setting.low, setting.high)
    return st.just(float(setting.default)) | inside


def policies(max_size: int = 5) -> st.SearchStrategy[Policy]:
    """A legal policy, also with terms that are the same loss, also with distillers."""
    lists = st.lists(terms(), max_size=max_size)
    doubled = st.tuples(lists, WEIGHTS).map(lambda pair: [*pair[0], *(replace(term, weight=pair[1]) for term in pair[0][:1])])
    learned = st.just([]) | st.lists(distillers(), max_size=2, unique_by=lambda one: one.name)
    both = st.tuples((lists | doubled).map(tuple), learned.map(tuple))
    return both.map(lambda pair: Policy(*pair)).filter(lambda policy: not check(policy))
