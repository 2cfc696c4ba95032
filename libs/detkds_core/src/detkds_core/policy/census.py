"""How large the search space is: how many formulas the names make, how many are legal, how many different, and why the rest are refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from detkds_core.policy.canonical import canonical_term
from detkds_core.policy.meaning import RULES
from detkds_core.policy.pair import PAIR_RULES, PairFacts
from detkds_core.policy.space import combinations_of, names_of, regions_of
from detkds_core.policy.terms import Term

# The published space of a feature knowledge: 5 attentions, 8 scales, 14 normalisations, 7 distances. With the official operations so many
# are proper losses, by the images of a batch: finite, not negative, about 0 where student and teacher agree, with a gradient.
OFFICIAL_FORMULAS = 3920
OFFICIAL_PROPER: Mapping[int, int] = {2: 1752, 1: 1098}


@dataclass(frozen=True, slots=True)
class Census:
    """The formulas of one knowledge on one pair.

    raw: all combinations of names. legal: those that no rule refuses. distinct: the different losses among them. refused: how many of the
    others each rule refuses, the most first; a formula that several refuse counts for the first of them, in the order of the rules.
    names: those that some legal formula has, of each transform and last of the distance, in the order of the vocabulary.
    """

    knowledge: str
    breadth: str
    raw: int
    legal: int
    distinct: int
    refused: Mapping[str, int]
    names: tuple[tuple[str, ...], ...]


def census(knowledge: str, facts: PairFacts, breadth: str = "full", regions: Sequence[str] | None = None) -> Census:
    """Count the formulas of a knowledge. regions: where they look; by default wherever a search on the pair may."""
    if regions is None:
        regions = regions_of(knowledge, breadth, facts)
    raw = 0
    choices = names_of(knowledge, breadth)
    used: list[set[str]] = [set() for _ in choices]
    distinct: set[Term] = set()
    refused: Counter[str] = Counter()
    for term in combinations_of(knowledge, breadth, regions):
        raw += 1
        if (rule := first_refusal(term, facts)) is not None:
            refused[rule] += 1
        else:
            distinct.add(replace(canonical_term(term), weight=1.0))
            for found, name in zip(used, (*term.transforms, term.distance), strict=True):
                found.add(name)
    names = tuple(tuple(name for name in of if name in found) for of, found in zip(choices, used, strict=True))
    return Census(knowledge, breadth, raw, raw - refused.total(), len(distinct), dict(refused.most_common()), names)


def first_refusal(term: Term, facts: PairFacts) -> str | None:
    """What the first rule that refuses a combination of known names is about; None for a legal one."""
    for name, rule in RULES.items():
        if any(True for _ in rule(term)):
            return name
    for name, pair_rule in PAIR_RULES.items():
        if any(True for _ in pair_rule(term, facts)):
            return name
    return None


def census_table(rows: Sequence[Census]) -> str:
    """Censuses as text: a line of figures for each, with the official ones above, and under it what refuses how many."""
    proper = ", ".join(f"{count:,} at {images} image{'s' * (images > 1)} a batch" for images, count in OFFICIAL_PROPER.items())
    lines = [f"official space: {OFFICIAL_FORMULAS:,} formulas a feature knowledge, of which proper losses: {proper}", ""]
    lines.append(f"{'knowledge':<14}{'space':<11}{'formulas':>9}{'legal':>8}{'different':>11}")
    for row in rows:
        lines.append(f"{row.knowledge:<14}{row.breadth:<11}{row.raw:>9,}{row.legal:>8,}{row.distinct:>11,}")
        lines += [f"    {count:>6,}  {rule}" for rule, count in row.refused.items()]
    return "\n".join(lines)
