"""`python -m detkds_core.losses.census`: how many formulas there are, are legal, are proper losses, and are different ones.

Every different formula is computed on toy tensors, which takes some 10 ms each: a minute or two for a kind of features. --full computes
every legal formula, also those that the canonical form says are the same, and each on every extreme input in every precision.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from detkds_core.losses.fingerprint import fingerprint
from detkds_core.losses.validity import CASES, classify, extreme_fault
from detkds_core.policy import PairFacts, Policy, Term, formula
from detkds_core.policy.canonical import canonical_term
from detkds_core.policy.census import OFFICIAL_FORMULAS, OFFICIAL_PROPER, first_refusal
from detkds_core.policy.space import combinations_of, regions_of
from detkds_core.policy.vocabulary import BREADTHS, KNOWLEDGE, REGIONS

EXAMPLES = 3  # formulas that a fault is shown by
IDENTITIES = 12  # that are shown


@dataclass
class Count:
    """The formulas of one knowledge. improper: {fault: the legal formulas that have it}; alike: distinct forms that compute the same."""

    knowledge: str
    raw: int = 0
    legal: int = 0
    proper: int = 0
    distinct: int = 0
    different: int = 0  # fingerprints
    per_image: int = 0  # of the distinct
    improper: dict[str, list[Term]] = field(default_factory=dict)
    alike: list[list[Term]] = field(default_factory=list)


def count(knowledge: str, images: int = 3, breadth: str = "full", full: bool = False) -> Count:
    """Count the formulas of a knowledge on a pair that can exchange everything, with so many images a batch."""
    facts = PairFacts(images_per_batch=images, has_edges=True, has_points=True, regions=REGIONS)
    result = Count(knowledge)
    forms: dict[Term, list[Term]] = {}
    for term in combinations_of(knowledge, breadth, regions_of(knowledge, breadth, facts)):
        result.raw += 1
        if first_refusal(term, facts) is None:
            forms.setdefault(replace(canonical_term(term), weight=1.0), []).append(term)
    result.legal, result.distinct = sum(map(len, forms.values())), len(forms)
    prints: dict[str, list[Term]] = {}
    for form, terms in forms.items():
        prints.setdefault(fingerprint(form), []).append(form)
        for one in terms if full else (form,):
            faults, per_image = _faults(one, images, full)
            result.per_image += per_image and one is (terms[0] if full else form)
            result.proper += (1 if full else len(terms)) * (not faults)
            for fault in faults:
                result.improper.setdefault(fault, []).append(one)
    result.different = len(prints)
    result.alike = [group for group in prints.values() if len(group) > 1]
    return result


def _faults(term: Term, images: int, full: bool) -> tuple[list[str], bool]:
    """What is improper about a legal formula, and whether it looks at each image for itself."""
    verdict = classify(term, images)
    faults = list(verdict.faults)
    if full and verdict.proper:
        faults += [f"{kind}, {dtype}" for kind, dtype in CASES if extreme_fault(term, kind, dtype, images)]
    return faults, verdict.per_image


def lines(result: Count) -> Iterator[str]:
    """A count as text."""
    yield (
        f"{result.knowledge:<13}{result.raw:>9,}{result.legal:>9,}{result.proper:>9,}{result.distinct:>10,}"
        f"{result.different:>13,}{result.per_image:>11,}"
    )
    for fault, terms in sorted(result.improper.items(), key=lambda one: -len(one[1])):
        yield f"    {len(terms):,} {fault}: {_examples(terms)}"
    names = Counter(tuple(sorted(_name(term) for term in group)) for group in result.alike)
    for alike, number in names.most_common(IDENTITIES):
        example = next(group for group in result.alike if tuple(sorted(_name(term) for term in group)) == alike)
        yield f"    {number:,} alike, {' and '.join(alike)}: {' and '.join(formula(Policy((term,))) for term in example)}"
    if len(names) > IDENTITIES:
        yield f"    and {sum(names.values()) - sum(number for _, number in names.most_common(IDENTITIES)):,} more groups alike"


def _name(term: Term) -> str:
    """What a formula ends with, which is what most identities are about."""
    return f"{term.distance}({term.transforms[-1]})"


def _examples(terms: Sequence[Term]) -> str:
    shown = ", ".join(formula(Policy((term,))) for term in terms[:EXAMPLES])
    return shown + (", ..." if len(terms) > EXAMPLES else "")


def header() -> str:
    proper: Mapping[int, int] = OFFICIAL_PROPER
    figures = ", ".join(f"{number:,} at {images} image{'s' * (images > 1)} a batch" for images, number in proper.items())
    official = f"official space: {OFFICIAL_FORMULAS:,} formulas a feature knowledge, of which proper losses: {figures}"
    return f"{official}\n\n{'knowledge':<13}{'formulas':>9}{'legal':>9}{'proper':>9}{'distinct':>10}{'fingerprints':>13}{'per image':>11}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--knowledge", choices=KNOWLEDGE, help="only this kind")
    parser.add_argument("--images", type=int, default=3, help="images of a batch; 3 unless told")
    parser.add_argument("--space", choices=BREADTHS, default="full", help="what a search may try; full unless told")
    parser.add_argument("--full", action="store_true", help="every legal formula, on every extreme input in every precision")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(header(), flush=True)
    for knowledge in (arguments.knowledge,) if arguments.knowledge else KNOWLEDGE:
        print("\n".join(lines(count(knowledge, arguments.images, arguments.space, arguments.full))), flush=True)


if __name__ == "__main__":
    main()
