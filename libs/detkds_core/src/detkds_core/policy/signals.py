"""Which signals of the detectors a policy is computed from: what must be captured, and what a pair must have."""

from detkds_core.policy.distillers import signals_of
from detkds_core.policy.terms import Policy, Term
from detkds_core.policy.vocabulary import FEATURES

# The regions of a weight a prediction, which the student's own loss tells, and the student's signals that they are made of.
OF_STUDENT = {"assigned": ("assigned",), "assigned_score": ("assigned", "logits"), "valuable": ("valuable",)}
OF_BOXES = {"kl_edges": "edges", "points": "points"}  # the signals that localization compares, where not boxes
OF_PROPOSALS = {"logits": "scores", "localization": "boxes"}  # what a term compares there, of the shared proposals


def needs(policy: Policy) -> frozenset[str]:
    """Which signals the policy is computed from, terms and distillers.

    Of features, logits, boxes, edges, points, assigned, valuable, towers_1 and so on by the layer; of shared proposals rois (their
    places), roi_scores, roi_boxes, roi_masks.
    """
    return frozenset().union(*map(needed, policy.terms), *map(signals_of, policy.distillers))


def needed(term: Term) -> set[str]:
    """The same of one term."""
    if term.knowledge in FEATURES:
        return {"features", *{"proposals": ["rois"], "teacher_score": ["logits"]}.get(term.region, [])}
    if term.region == "proposals":
        # A proposal's box is that of the teacher's likeliest class.
        return {"rois", "roi_scores", *(["roi_boxes"] if term.knowledge == "localization" else [])}
    if term.region == "masks":
        return {"rois", "roi_masks"}
    found = {signal_of(term), *OF_STUDENT.get(term.region, ())}
    return found | {"logits"} if reads_scores(term) else found


def signal_of(term: Term) -> str:
    """The signal in which the term compares student and teacher; of the proposals where it looks at those."""
    if term.knowledge in FEATURES:
        return "features"
    if term.region == "masks":
        return "masks"
    if term.region == "proposals":
        return OF_PROPOSALS[term.knowledge]
    return "logits" if term.knowledge == "logits" else OF_BOXES.get(term.distance, "boxes")


def reads_scores(term: Term) -> bool:
    """Whether it reads the dense head's class scores, whatever it compares: how much a cell counts, or from their maps how large it is."""
    if term.knowledge == "localization":
        return term.region not in OF_STUDENT or term.distance != "kl_edges"
    return term.region == "teacher_score"
