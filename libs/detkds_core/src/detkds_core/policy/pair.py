"""What a pair can be trained with: the facts that decide, and the rules."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from detkds_core.policy.meaning import OF_IMAGES, few_scores, last
from detkds_core.policy.terms import Reason, Term
from detkds_core.policy.vocabulary import OVER_IMAGES

EVERYWHERE = ("all",)


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What the rules need to know of a pair and its training.

    regions: where it can look, for each knowledge that can look anywhere but at `all`. lacking: why it cannot, {"logits.proposals": why},
    and why it has no edges or points, {"edges": why}.
    """

    images_per_batch: int = 2  # that a training step sees on one device
    has_edges: bool = False  # both detectors predict edge distributions (GFL)
    score_channels: int | None = None  # class scores that are compared with one another; None: not known, and taken for several
    has_points: bool = False  # both detectors predict point sets (RepPoints)
    roi_channels: int | None = None  # class scores of a proposal, background included; None: not known, and taken for several
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)

    def regions_of(self, knowledge: str) -> tuple[str, ...]:
        """Where the pair can look for a knowledge."""
        return self.regions.get(knowledge, EVERYWHERE)


PairRule = Callable[[Term, PairFacts], Iterator[Reason]]


def pair_legality(term: Term, facts: PairFacts) -> list[Reason]:
    """Why a legal term has no meaning on this pair; empty if it has."""
    return [reason for rule in PAIR_RULES.values() for reason in rule(term, facts)]


def images_needed(terms: Iterable[Term]) -> int:
    """The fewest images that a forward of one device may have, so that each of the terms has a gradient: 1, 2 or 3."""

    def lacking(term: Term, images: int) -> bool:
        facts = PairFacts(images_per_batch=images)
        return any(True for rule in (_two_images, _three_images) for _ in rule(term, facts))

    return max((next((images for images in (1, 2) if not lacking(term, images)), 3) for term in terms), default=1)


def _regions(term: Term, facts: PairFacts) -> Iterator[Reason]:
    regions = facts.regions_of(term.knowledge)
    if term.region != "all" and term.region not in regions:
        why = facts.lacking.get(f"{term.knowledge}.{term.region}") or facts.lacking.get(term.region)
        message = (
            f"this pair cannot look for {term.knowledge!r} at {term.region!r}{f' ({why})' if why else ''}; one of {', '.join(regions)}"
        )
        yield Reason("region", message)


def _two_images(term: Term, facts: PairFacts) -> Iterator[Reason]:
    if facts.images_per_batch >= 2:
        return
    for place, name in enumerate(term.transforms):
        if name in ("natt", "mm", *OVER_IMAGES):
            message = f"{name!r} compares the images of a batch and is constant on one image; train with a batch of at least 2"
            yield Reason(f"transforms[{place}]", message)


def _three_images(term: Term, facts: PairFacts) -> Iterator[Reason]:
    if facts.images_per_batch >= 3:
        return
    # Proposals are many, whatever the images.
    over_images = term.distance in OF_IMAGES and term.region != "proposals"
    # `mm` on one image is refused already.
    over_row = term.distance == "pear" and term.transforms[-1] == "mm" and facts.images_per_batch == 2
    if over_images or over_row:
        message = f"{term.distance!r} over two images is 0 or 2, without gradient; train with a batch of at least 3"
        yield Reason(last(term) if over_row else "distance", message)


def _boxes(term: Term, facts: PairFacts) -> Iterator[Reason]:
    for distance, signal, has, needed in (
        ("kl_edges", "edges", facts.has_edges, "edge distributions of both detectors (GFL), with as many bins"),
        ("points", "points", facts.has_points, "point sets of both detectors (RepPoints), with as many points"),
    ):
        if term.distance == distance and not has:
            why = facts.lacking.get(signal)
            yield Reason("distance", f"{distance!r} needs {needed}{f' ({why})' if why else ''}; one of l1, iou, giou, diou")


def _few_scores(term: Term, facts: PairFacts) -> Iterator[Reason]:
    if term.knowledge == "logits" and term.region != "masks":  # a mask is one score on every pair
        channels = facts.roi_channels if term.region == "proposals" else facts.score_channels
        yield from few_scores(term, channels, "class score")


# By what a rule is about, which is how the census calls it.
PAIR_RULES: Mapping[str, PairRule] = {
    "the pair cannot look there": _regions,
    "needs 2 images a batch": _two_images,
    "needs 3 images a batch": _three_images,
    "needs edges or points": _boxes,
    "needs several class scores": _few_scores,
}
