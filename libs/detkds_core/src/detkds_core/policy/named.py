"""Policies with a name: no distillation, hand-designed distillers, and the policies that DetKDS released.

Weights are as published. Where our reduction differs from the publication's, the note says so. Distillers with learned parts (FGD, MGD,
MasKD) are no policies; they are modules of `detkds_core.distillers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from detkds_core.policy.formula import parse_formula
from detkds_core.policy.terms import Policy


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy, where it was published, and what is worth knowing before it is used."""

    name: str
    policy: Policy
    source: str
    note: str


DETKDS = "DetKDS (Li et al., ICML 2024), released configuration"

PUBLISHED: tuple[tuple[str, str, str, str], ...] = (
    ("none", "none", "", "Training without distillation."),
    ("fitnets", "l2(global)", "FitNets (Romero et al., ICLR 2015)", "Mean squared difference of the feature maps."),
    (
        "pkd",
        "5·l2(standardize(global))",
        "PKD (Cao et al., NeurIPS 2022)",
        "Published weight 10 (one-stage detectors; 6 for two-stage) times its factor of 1/2.",
    ),
    (
        "cwd",
        "5·kl(softmax_HW(global))",
        "CWD (Shu et al., ICCV 2021)",
        "Channel by channel, where in the image the teacher looks. Temperature 1, as on RetinaNet; 10 is in use as weight too.",
    ),
    (
        "cwd_logits",
        "5·kl(softmax_HW(logits))",
        "CWD (Shu et al., ICCV 2021), on class maps",
        "For detectors whose dense heads score the same classes and anchors.",
    ),
    (
        "defeat",
        "3·l2[background=4](fgbg)",
        "DeFeat (Guo et al., CVPR 2021)",
        "Published weights 3 and 12. Ours divides each region by its area before the square: a far smaller loss than the original.",
    ),
    (
        "dist",
        "pear(logits)",
        "DIST (Huang et al., NeurIPS 2022)",
        "Its relation between classes, over the class scores of each cell; without its relation between samples.",
    ),
    (
        "ld",
        "0.25·kl_edges[T=10](localization)",
        "LD (Zheng et al., CVPR 2022)",
        "Its main term: GFL's edge distributions, here weighted by the teacher's class score at every cell.",
    ),
    ("detkds_retinanet", "6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))", DETKDS, "RetinaNet R101 to R50."),
    (
        "detkds_retinanet_x101",
        "50·l1(norm_C(catt(instance)))",
        DETKDS,
        "RetinaNet X101 to R50; as configured, for the released code does not run it.",
    ),
    (
        "detkds_faster_rcnn",
        "2·l1(norm_N(scale_r2(catt(global)))) + 2·l2(norm_C(mask(fgbg))) + 0.1·pear(norm_C(mask(instance))) + 0.1·pear(softmax_C(logits))",
        DETKDS,
        "Faster R-CNN R101 to R50; as configured, while the released code would add the first term alone.",
    ),
    ("detkds_fcos", "5·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_C(mask(fgbg)))", DETKDS, "FCOS R101 to R50."),
    ("detkds_gfl", "10·l1(norm_N(scale_r2(catt(global))))", DETKDS, "GFL R101 to R50, and RepPoints X101 to R50."),
)


@cache
def named_policies() -> Mapping[str, NamedPolicy]:
    """All named policies by name, no distillation first."""
    return MappingProxyType({name: NamedPolicy(name, parse_formula(text), source, note) for name, text, source, note in PUBLISHED})
