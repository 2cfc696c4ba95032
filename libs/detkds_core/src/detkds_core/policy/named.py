"""Policies with a name: no distillation, hand-designed distillers, and the eight policies that DetKDS released.

Weights are as published. Where our reduction differs from the publication's, the note says so, with the factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from detkds_core.policy.canonical import canonical
from detkds_core.policy.distillers import Offer, pair_faults
from detkds_core.policy.formula import formula, parse_formula
from detkds_core.policy.pair import PairFacts, pair_legality
from detkds_core.policy.terms import Policy


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy, where it was published, and what is worth knowing before it is used.

    expected_use: which students and teachers it was designed for. pair, schedule: of a released policy, what it was released for.
    """

    name: str
    policy: Policy
    source: str
    note: str
    expected_use: str
    pair: str = ""
    schedule: str = ""

    @property
    def formula(self) -> str:
        return formula(self.policy)


ANY = "Any pair whose pyramids share a stride."
FRS = "{}·l2[warm_up=500, region=teacher_score](global) + {}·kl_sigmoid[warm_up=500, region=teacher_score](logits)"
ONE_STAGE, TWO_STAGE = "One-stage detectors, same or other family.", "Two-stage detectors."

# name, formula, source, expected use, note
HAND_DESIGNED: tuple[tuple[str, str, str, str, str], ...] = (
    ("none", "none", "", "Every student, as what others are compared with.", "Training without distillation."),
    ("fitnets", "l2(global)", "FitNets (Romero et al., ICLR 2015)", ANY, "Mean squared difference of the feature maps."),
    (
        "pkd",
        "5·l2(standardize(global))",
        "PKD (Cao et al., NeurIPS 2022)",
        "One-stage detectors, also of different families and backbones.",
        "Published weight 10 times its factor of 1/2.",
    ),
    (
        "pkd_two_stage",
        "3·l2(standardize(global))",
        "PKD (Cao et al., NeurIPS 2022)",
        "Two-stage detectors, also of different families and backbones.",
        "Published weight 6 times its factor of 1/2.",
    ),
    (
        "cwd",
        "5·kl(softmax_HW(global))",
        "CWD (Shu et al., ICCV 2021)",
        ANY,
        "Channel by channel, where in the image the teacher looks. Temperature 1, as on RetinaNet; 10 is in use as weight too.",
    ),
    (
        "cwd_logits",
        "5·kl(softmax_HW(logits))",
        "CWD (Shu et al., ICCV 2021), on class maps",
        "Detectors whose dense heads score the same classes and anchors.",
        "CWD on class scores instead of features.",
    ),
    (
        "defeat",
        "3·l2[background=4](fgbg)",
        "DeFeat (Guo et al., CVPR 2021)",
        "Pairs of one family; designed on Faster R-CNN and RetinaNet.",
        "Published weights 3 and 12. Ours divides the features by a region's cells before the square and takes the mean over the map; the"
        " original sums channels and takes half the mean over the region, and the mean over levels: n·M·C/2 times ours on one level, for"
        " one box of n cells of M, and C channels. Over several boxes and levels ours weighs small boxes and coarse levels more.",
    ),
    (
        "dist",
        "pear(logits) + pear_HW(logits)",
        "DIST (Huang et al., NeurIPS 2022)",
        "Detectors whose dense heads score the same classes and anchors.",
        "Relates the class scores of a prediction, and the cells of an image; the original relates the cells of the whole batch.",
    ),
    (
        "fgd",
        "fgd",
        "FGD (Yang et al., CVPR 2022)",
        ONE_STAGE,
        "Sums over elements: weights for 256 channels and 800-pixel images. Elsewhere `0.5·fgd[balanced]`.",
    ),
    (
        "fgd_two_stage",
        "fgd[alpha=5e-05, beta=2.5e-05, gamma=5e-05, lambda=5e-07]",
        "FGD (Yang et al., CVPR 2022)",
        TWO_STAGE,
        "The weights of one-stage detectors over 20, 20, 10 and 10.",
    ),
    (
        "fgd_fcos",
        "fgd[alpha=0.0016, beta=0.0008, gamma=0.0008, lambda=8e-06, temperature=0.8]",
        "FGD (Yang et al., CVPR 2022)",
        "FCOS.",
        "The weights of one-stage detectors times 1.6, and a softer attention.",
    ),
    (
        "fgd_reppoints",
        "fgd[alpha=0.0016, beta=0.0008, gamma=0.0008, lambda=8e-06]",
        "FGD (Yang et al., CVPR 2022)",
        "RepPoints.",
        "The weights of one-stage detectors times 1.6.",
    ),
    (
        "mgd",
        "mgd",
        "MGD (Yang et al., ECCV 2022)",
        ONE_STAGE,
        "A sum over elements: its weight is for 256 channels and 800-pixel images. Elsewhere `0.05·mgd[balanced]`.",
    ),
    (
        "mgd_two_stage",
        "mgd[alpha=5e-07, mask_ratio=0.45]",
        "MGD (Yang et al., ECCV 2022)",
        TWO_STAGE,
        "A sum over elements: its weight is for 256 channels and 800-pixel images.",
    ),
    (
        "maskd",
        "maskd",
        "MasKD (Huang et al., ICLR 2023)",
        "RetinaNet, and one-stage detectors without weights of their own.",
        "Its receptive tokens are learned on the teacher first. Its term on features; `maskd_boxes` has the one on boxes too. Published"
        " settings let the student's masks count from 5,000 to 8,500 steps on (`masks_from`), ours from 1,000.",
    ),
    (
        "maskd_fcos",
        "maskd[weight=10]",
        "MasKD (Huang et al., ICLR 2023)",
        "FCOS, RepPoints.",
        "Its term on features.",
    ),
    (
        "maskd_boxes",
        "maskd + l1(localization)",
        "MasKD (Huang et al., ICLR 2023)",
        "RetinaNet pairs with the same anchors.",
        "With its L1 on the box branch, which is here of decoded boxes, in widths and heights, weighted by the teacher's class score.",
    ),
    (
        "maskd_two_stage",
        "maskd[weight=1]",
        "MasKD (Huang et al., ICLR 2023)",
        TWO_STAGE,
        "Its term on features; `maskd_two_stage_boxes` has the one on the boxes of proposals too.",
    ),
    (
        "maskd_two_stage_boxes",
        "maskd[weight=1] + deltas[region=proposals](localization)",
        "MasKD (Huang et al., ICLR 2023)",
        "Two-stage detectors, Cascade R-CNN as a teacher.",
        "With its term on the boxes of shared proposals. The original takes the smooth L1 of what the box branches say for all classes, 10"
        " times the places and 5 times the logarithms of sizes that ours compares; ours takes the L1, for the teacher's likeliest class,"
        " weighted by its probability.",
    ),
    (
        "ld_main",
        "0.25·kl_edges[T=10, region=assigned_score](localization)",
        "LD (Zheng et al., CVPR 2022), its main term",
        "GFL pairs with as many bins.",
        "At the cells that the student's loss assigns, each weighted by w, the student's best class score. The original takes the mean over"
        " the R+1 bins and sums w·KL over cells; ours sums over bins and divides by the sum of w, so the original is sum(w)/(R+1) times as"
        " large (17 bins, 3 images: a few times).",
    ),
    (
        "ld",
        "0.125·kl[T=2, region=assigned](softmax_C(logits)) + 0.25·kl_edges[T=10, region=assigned_score](localization)"
        " + 0.25·kl_edges[T=10, region=valuable](localization)",
        "LD (Zheng et al., CVPR 2022)",
        "GFL pairs with as many bins and the same classes.",
        "With its term on the valuable localization region, of which ours leaves the assigned cells out, and class scores. The region's"
        " original sums IoU·KL over cells, over 4 more, so it is sum(IoU)/4/(R+1) times ours; the main term as `ld_main`. Published weight"
        " 10 of the class scores, over the 80 classes that the original takes the mean over; it sums the means of its levels.",
    ),
    (
        "frs",
        FRS.format(1.28, 0.02),
        "FRS (Du et al., NeurIPS 2021)",
        "RetinaNet pairs of 256 channels with the same anchors.",
        "Published weights 0.005, times the 256 channels that the original sums, and 0.02. Its binary cross-entropy less the teacher's"
        " entropy, which has no gradient; 1x1 adapters only where channels differ.",
    ),
    (
        "frs_gfl",
        FRS.format(25.6, 0.05),
        "FRS (Du et al., NeurIPS 2021)",
        "GFL pairs of 256 channels.",
        "As `frs`, with published weights 0.1 and 0.05.",
    ),
    (
        "frs_fcos",
        FRS.format(2.56, 0.05),
        "FRS (Du et al., NeurIPS 2021)",
        "FCOS pairs of 256 channels.",
        "As `frs`, with published weights 0.01 and 0.05.",
    ),
    (
        "frs_two_stage",
        FRS.format(0.512, 0.1),
        "FRS (Du et al., NeurIPS 2021)",
        "Two-stage pairs of 256 channels.",
        "As `frs`, with published weights 0.002 and 0.1; scores are those of the region proposal network.",
    ),
    (
        "gid",
        "gid",
        "GID (Dai et al., CVPR 2021)",
        "One-stage detectors that score the same classes at the same cells.",
        "Instances are matched to predictions by the boxes of these, where the original matches anchors. Its weights are COCO's; elsewhere"
        " `0.5·gid[balanced]`.",
    ),
    (
        "crosskd",
        "crosskd",
        "CrossKD (Wang et al., CVPR 2024)",
        "RetinaNet pairs; ATSS.",
        "Without the term on the centreness that ATSS has.",
    ),
    (
        "crosskd_fcos",
        "crosskd[boxes=0.75, classes=0.4, giou=0, layer=2]",
        "CrossKD (Wang et al., CVPR 2024)",
        "FCOS pairs.",
        "Features change heads a layer earlier. The original divides by the sum of the centreness targets of the cells that the student's"
        " loss takes for objects, ours by how many these are.",
    ),
    ("crosskd_gfl", "crosskd[boxes=4]", "CrossKD (Wang et al., CVPR 2024)", "GFL pairs.", "The KL of edge distributions has weight 4."),
    (
        "crosskd_pkd",
        "crosskd + 3·l2(standardize(global))",
        "CrossKD (Wang et al., CVPR 2024)",
        "RetinaNet pairs; ATSS.",
        "With PKD on the features, published weight 6 times its factor of 1/2.",
    ),
)

DETKDS = "DetKDS (Li et al., ICML 2024), released configuration"
TEN = "10·l1(norm_N(scale_r2(catt(global))))"
CONVOLUTIONS = "mgd[alpha=5e-07, l1=1, mask_ratio=0.45]"
DECLARED = (
    "As declared: masked generation, share 0.45, weight 5e-7, by l1, for which its `channel` is as good as nothing. The released code does"
    " not run it and leaves the reduction open: a sum over elements here, as in MGD."
)
# All: SGD of momentum 0.9 and decay 1e-4, gradient clip 35, 24 epochs, a tenth of the rate after 16 and 22, warm-up of 500 iterations.
SCHEDULE = "2x (24 epochs, SGD, steps after 16 and 22, clip 35), learning rate {}, {} images a GPU{}"
INHERITING = ", inheriting neck and head"

# name, formula, teacher -> student, schedule, note
RELEASED: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "detkds_retinanet",
        "6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))",
        "RetinaNet R101 -> RetinaNet R50",
        SCHEDULE.format(0.01, 4, INHERITING),
        "As released.",
    ),
    (
        "detkds_retinanet_x101",
        "50·l1(norm_C(catt(instance)))",
        "RetinaNet X101-64x4d -> RetinaNet R50",
        SCHEDULE.format(0.02, 2, INHERITING),
        "As declared; the released code does not run it.",
    ),
    (
        "detkds_faster_rcnn",
        "2·l1(norm_N(scale_r2(catt(global)))) + 2·l2(norm_C(mask(fgbg))) + 0.1·pear(norm_C(mask(instance))) + 0.1·pear(softmax_C(logits))",
        "Faster R-CNN R101 -> Faster R-CNN R50",
        SCHEDULE.format(0.02, 2, INHERITING),
        "As declared; the released code does not run it, and would add the first term alone and read l2 as l1. Its logits are the region"
        " proposal network's.",
    ),
    (
        "detkds_fcos",
        "5·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_C(mask(fgbg)))",
        "FCOS R101 (caffe) -> FCOS R50 (caffe, centre sampling, normalised boxes)",
        SCHEDULE.format(0.01, 2, f", shorter sides of 640 and 800 pixels, biases at twice the rate{INHERITING}"),
        "As released, with one mask for student and teacher. Teacher and student normalise their inputs differently.",
    ),
    (
        "detkds_gfl",
        TEN,
        "GFL R101 -> GFL R50",
        SCHEDULE.format(0.01, 2, f", shorter sides of 480 to 800 pixels{INHERITING}"),
        "As released.",
    ),
    ("detkds_reppoints", TEN, "RepPoints X101-DCN -> RepPoints R50", SCHEDULE.format(0.01, 2, INHERITING), "As released; the loss of GFL."),
    (
        "detkds_cascade_faster_rcnn",
        CONVOLUTIONS,
        "Cascade Mask R-CNN X101-32x4d-DCN -> Faster R-CNN R50",
        SCHEDULE.format(0.02, 2, ", without inheriting"),
        DECLARED,
    ),
    (
        "detkds_cascade_mask_rcnn",
        CONVOLUTIONS,
        "Cascade Mask R-CNN X101-32x4d-DCN -> Mask R-CNN R50",
        SCHEDULE.format(0.02, 4, ", without inheriting"),
        DECLARED,
    ),
)


@cache
def named_policies() -> Mapping[str, NamedPolicy]:
    """All named policies by name, no distillation first. Some released ones are the same loss for different pairs."""
    by_hand = [NamedPolicy(name, parse_formula(text), source, note, use) for name, text, source, use, note in HAND_DESIGNED]
    released = [
        NamedPolicy(name, parse_formula(text), DETKDS, note, f"{pair}, and pairs alike.", pair, schedule)
        for name, text, pair, schedule, note in RELEASED
    ]
    return MappingProxyType({one.name: one for one in (*by_hand, *released)})


@cache
def _first_names() -> Mapping[Policy, str]:
    names: dict[Policy, str] = {}
    for name, one in named_policies().items():
        names.setdefault(canonical(one.policy), name)
    return MappingProxyType(names)


def name_of(policy: Policy) -> str | None:
    """The first name of a legal policy's loss; None if it has none."""
    return _first_names().get(canonical(policy))


# Of the named policies: the stages of the students, and their families, that each was given its weights for; a name that is not here, any.
STAGES: Mapping[str, int] = MappingProxyType(
    {name: stages for base in ("pkd", "fgd", "mgd", "maskd", "frs") for name, stages in ((base, 1), (f"{base}_two_stage", 2))}
    | {"maskd_two_stage_boxes": 2}
)
ANCHORS = ("retinanet", "atss")


def _but(*families: str) -> tuple[str, ...]:
    """The one-stage families without these, which have weights of their own."""
    known = ("retinanet", "atss", "gfl", "fcos", "reppoints", "rtmdet", "yolox", "detr", "deformable_detr")
    return tuple(family for family in known if family not in families)


FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fgd": _but("fcos", "reppoints"),
        "fgd_fcos": ("fcos",),
        "fgd_reppoints": ("reppoints",),
        "maskd": _but("fcos", "reppoints"),
        "maskd_fcos": ("fcos", "reppoints"),
        "maskd_boxes": ("retinanet",),
        "frs": _but("gfl", "fcos"),
        "frs_gfl": ("gfl",),
        "frs_fcos": ("fcos",),
        "crosskd": ANCHORS,
        "crosskd_pkd": ANCHORS,
        "crosskd_fcos": ("fcos",),
        "crosskd_gfl": ("gfl",),
        "detkds_retinanet": ("retinanet",),
        "detkds_retinanet_x101": ("retinanet",),
        "detkds_faster_rcnn": ("faster_rcnn",),
        "detkds_fcos": ("fcos",),
        "detkds_gfl": ("gfl",),
        "detkds_reppoints": ("reppoints",),
        "detkds_cascade_faster_rcnn": ("faster_rcnn",),
        "detkds_cascade_mask_rcnn": ("mask_rcnn",),
    }
)


def suiting(offer: Offer, facts: PairFacts, families: tuple[str, str], stages: int) -> tuple[str, ...]:
    """The named distillers to compare a search on a pair with: those that the pair can train with and that are meant for its student.

    families: of teacher and student; stages: of the student. Each loss once, under its first name that fits; no distillation is not one.
    """
    chosen: dict[Policy, str] = {}
    for name, one in named_policies().items():
        meant = STAGES.get(name, stages) == stages and families[1] in FAMILIES.get(name, families[1:])
        if meant and one.policy != Policy(()) and not cannot_run(one.policy, offer, facts, families):
            chosen.setdefault(canonical(one.policy), name)
    return tuple(chosen.values())


def cannot_run(policy: Policy, offer: Offer, facts: PairFacts, families: tuple[str, str] | None = None) -> list[tuple[str, str]]:
    """Why a pair cannot train with a legal policy, as (path, reason); empty if it can.

    offer: what teacher and student can exchange (`catalogue.exchange`). families: of teacher and student, where they are known.
    """
    faults = []
    for place, term in enumerate(policy.terms):
        path = f"policy.terms[{place}]"
        if why := offer.excluded.get(term.knowledge):
            faults.append((f"{path}.knowledge", f"this pair cannot exchange {term.knowledge!r}: {why}"))
        else:
            faults += [(f"{path}.{reason.field}", reason.message) for reason in pair_legality(term, facts)]
    for place, distiller in enumerate(policy.distillers):
        faults += [(f"policy.distillers[{place}]", why) for why in pair_faults(distiller.name, offer, families)]
    return faults
