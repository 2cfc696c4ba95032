"""Hand-designed distillers with learned parts: what each is, what it can be set to, and which pairs can run it.

Without torch. What they compute is in `detkds_core.distillers`, a module a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from detkds_core.policy.terms import Distiller


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that a policy may give a distiller, from low to high; whole: no fractions."""

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class DistillerEntry:
    """A distiller. needs: the signals of both detectors that it is computed from, as `signals.needs` names them.

    families: the detectors that it is defined for, on both sides; empty for any. formula: what it adds, in words and symbols.
    """

    name: str
    title: str
    settings: Mapping[str, Setting]
    needs: frozenset[str]
    families: tuple[str, ...]
    formula: str
    source: str
    note: str


class Offer(Protocol):
    """What `catalogue.exchange` says of a pair: excluded knowledge and lacking signals, each with the reason."""

    @property
    def excluded(self) -> Mapping[str, str]: ...

    @property
    def lacking(self) -> Mapping[str, str]: ...


def _weight(default: float, meaning: str) -> Setting:
    return Setting(default, 0.0, 1000.0, meaning)


def _switch(meaning: str, choices: str = "1 yes, 0 no", default: float = 1.0) -> Setting:
    return Setting(default, 0.0, 1.0, f"{meaning}; {choices}", whole=True)


TOWERS = ("retinanet", "gfl", "fcos", "atss")  # dense heads of stacked convolutions, of which the last can be another detector's

_ENTRIES = (
    DistillerEntry(
        name="fgd",
        title="Focal and global distillation",
        settings={
            "alpha": _weight(1e-3, "weight of the foreground"),
            "beta": _weight(5e-4, "weight of the background"),
            "gamma": _weight(5e-4, "weight of the attention loss"),
            "lambda": _weight(5e-6, "weight of the global relation"),
            "temperature": Setting(0.5, 0.01, 100.0, "temperature of both attentions"),
        },
        needs=frozenset({"features"}),
        families=(),
        formula="sum((alpha·foreground + beta·background)·A_t·(S - T)²)/N + gamma·sum|A_s - A_t|/N + lambda·sum((Gc_s(S) - Gc_t(T))²)/N",
        source="FGD (Yang et al., CVPR 2022)",
        note="Defaults for one-stage detectors; sums over elements of 256 channels and 800-pixel images. Elsewhere `0.5·fgd[balanced]`.",
    ),
    DistillerEntry(
        name="mgd",
        title="Masked generative distillation",
        settings={
            "alpha": _weight(2e-5, "weight"),
            "mask_ratio": Setting(0.65, 0.0, 0.99, "share of the student's positions that are masked"),
            "l1": _switch("compares by |G - T|", "1 yes, 0 by (G - T)²", default=0.0),
        },
        needs=frozenset({"features"}),
        families=(),
        formula="alpha·sum((G(S·mask) - T)²)/N, with l1 alpha·sum|G(S·mask) - T|/N",
        source="MGD (Yang et al., ECCV 2022)",
        note="Defaults for one-stage detectors; a sum over elements of 256 channels and 800-pixel images. Elsewhere `0.05·mgd[balanced]`: a"
        " small ratio, for its generator, untaught, hardly passes a gradient where the training starts.",
    ),
    DistillerEntry(
        name="maskd",
        title="Masked knowledge distillation",
        settings={
            "weight": _weight(7.0, "weight"),
            "tokens": Setting(6.0, 1.0, 64.0, "receptive tokens of a level", whole=True),
            "steps": Setting(2000.0, 0.0, 1e6, "training steps of the tokens on the teacher, before the student's training", whole=True),
            "weigh": _switch("a token counts as much as the teacher's feature says"),
            "student_masks": _switch("the tokens' masks of the student's feature multiply the teacher's, from step masks_from on"),
            "masks_from": Setting(1000.0, 0.0, 1e7, "training steps before the student's masks count", whole=True),
        },
        needs=frozenset({"features"}),
        families=(),
        formula="weight·mean_N(sum_k w_k(T)·mean_C(sum_HW((m_k·(S - T))²)/sum_HW(m_k)))",
        source="MasKD (Huang et al., ICLR 2023)",
        note="Tokens are learned on the frozen teacher first, and kept for its other students. RetinaNet's weight; 10 for FCOS.",
    ),
    DistillerEntry(
        name="gid",
        title="General instance distillation",
        settings={
            "feature": _weight(5e-4, "weight of the features inside the instances"),
            "relation": _weight(40.0, "weight of the distances between the instances"),
            "classes": _weight(0.1, "weight of the class scores of the cells that find an instance"),
            "boxes": _weight(1.0, "weight of the boxes of those cells"),
            "instances": Setting(10.0, 1.0, 1000.0, "instances of an image", whole=True),
            "candidates": Setting(3000.0, 1.0, 1e6, "predictions of an image among which the instances are chosen", whole=True),
            "iou": Setting(0.3, 0.0, 1.0, "overlap from which the more telling of two instances suppresses the other"),
        },
        needs=frozenset({"features", "logits", "boxes"}),
        families=(),
        formula="feature·mean|A(S)_roi - T_roi|² + relation·smooth_l1(D(A(S)_roi), D(T_roi)) + classes·bce(σ_s, σ_t) + boxes·l1(b_s, b_t)",
        source="GID (Dai et al., CVPR 2021)",
        note="Instances are where the best class scores of teacher and student differ most, so both must score the same cells and classes.",
    ),
    DistillerEntry(
        name="crosskd",
        title="Cross-head knowledge distillation",
        settings={
            "classes": _weight(1.0, "weight of the class scores"),
            "boxes": _weight(1.0, "weight of the boxes"),
            "temperature": Setting(1.0, 0.01, 100.0, "temperature of the edge distributions"),
            "giou": _switch("what compares boxes without edge distributions", "1: 1 - GIoU, 0: -ln IoU"),
            "layer": Setting(3.0, 1.0, 100.0, "convolution of a branch, but for its last, after which features change heads", whole=True),
        },
        needs=frozenset({"towers", "assigned"}),
        families=TOWERS,
        formula="classes·sum(|σ_s - σ_t|·bce(σ_s, σ_t))/positives + boxes·sum(max σ_t·d(S_box, T_box))/sum(max σ_t)",
        source="CrossKD (Wang et al., CVPR 2024)",
        note="The student's head features pass through the last layers of the teacher's head. d: KL of edges (GFL), 1 - GIoU or -ln IoU.",
    ),
)

DISTILLERS: Mapping[str, DistillerEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})

FORMERLY = {"maskd": {"warm_up": "masks_from"}}  # settings by the name that stored policies have for them

KNOWLEDGE_OF = {"features": "global", "logits": "logits", "boxes": "localization"}  # the knowledge that a signal is compared as


def learns_first(distiller: Distiller) -> bool:
    """Whether it learns something on the teacher before the student's training."""
    steps = DISTILLERS[distiller.name].settings.get("steps")
    return steps is not None and dict(distiller.settings).get("steps", steps.default) > 0


def signals_of(distiller: Distiller) -> frozenset[str]:
    """The signals that a distiller is computed from, as `signals.needs` names them: towers with their layer, `towers_3`."""
    entry = DISTILLERS[distiller.name]
    layer = dict(distiller.settings).get("layer", entry.settings["layer"].default) if "towers" in entry.needs else 0
    return frozenset(f"{name}_{layer:.0f}" if name == "towers" else name for name in entry.needs)


def pair_faults(name: str, offer: Offer, families: tuple[str, str] | None = None) -> list[str]:
    """Why a pair cannot run the distiller, a sentence a reason; empty where it can. families: of teacher and student, where known."""
    entry = DISTILLERS[name]
    reasons = []
    for signal in sorted(entry.needs):
        why = offer.lacking.get(signal) or offer.excluded.get(KNOWLEDGE_OF.get(signal, signal))
        if why:
            reasons.append(f"{name!r} compares {signal}: {why}")
    for side, family in zip(("teacher", "student"), families or (), strict=False):
        if entry.families and family not in entry.families:
            reasons.append(f"{name!r} is defined for {', '.join(entry.families)}; the {side} is of family {family!r}")
    if name == "crosskd" and "localization" in offer.excluded:
        reasons.append(f"{name!r} compares boxes cell by cell: {offer.excluded['localization']}")
    return reasons
