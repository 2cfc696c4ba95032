"""The names and limits of the policy language, and what each kind of knowledge may be combined from.

One spelling everywhere: JSON, formula, database, tables.
"""

from collections.abc import Mapping

FEATURES = ("global", "fgbg", "instance")
RESPONSES = ("logits", "localization")
KNOWLEDGE = FEATURES + RESPONSES

ATTENTION = ("none", "satt", "natt", "catt", "mask")
SCALE = ("none", "scale_r1", "scale_r2", "multi_scale_r4", "local_s1", "local_s2", "local_s4", "scale")
NORMALISATION = (
    "none",
    "batch",
    "channel",
    "norm_HW",
    "norm_C",
    "norm_N",
    "softmax_N",
    "softmax_C",
    "softmax_HW",
    "logsoftmax_N",
    "logsoftmax_C",
    "logsoftmax_HW",
    "min_max_normalize",
    "batchnorm",
    "standardize",
)

# Why each name is in no vocabulary, for those who know it from DetKDS.
NOT_OFFERED: Mapping[str, str] = {
    "cor": "it is not 0 where student and teacher agree, can be negative, and is not defined on one image",
}

Slots = tuple[tuple[str, tuple[str, ...]], ...]

_NORMALISATION_SLOT = ("normalisation", NORMALISATION)
_FEATURE_SLOTS: Slots = (("attention", ATTENTION), ("scale", SCALE), _NORMALISATION_SLOT)

# The transforms of a term: what each is called and its choices, innermost first.
SLOTS: Mapping[str, Slots] = {
    **dict.fromkeys(FEATURES, _FEATURE_SLOTS),
    "logits": (_NORMALISATION_SLOT,),
    "localization": (("transform", ("none",)),),
}

_TENSOR_DISTANCES = ("l1", "l2", "smooth_l1", "pear", "cos", "kl")
DISTANCES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*FEATURES, "logits"), _TENSOR_DISTANCES),
    "localization": ("l1", "iou", "giou", "kl_edges"),
}
DIVERGENCES = ("kl", "kl_edges")  # the distances that have a temperature
SHAREABLE = ("satt", "catt")  # the attentions that the teacher can lend to both sides

# Where a term looks. `all` is the knowledge's own place: every position, FGD's masks, ground-truth boxes, every cell, cells weighted by
# the teacher's best class score.
REGIONS: Mapping[str, tuple[str, ...]] = {
    "global": ("all", "teacher_score"),
    "fgbg": ("all",),
    "instance": ("all", "proposals"),
    "logits": ("all", "teacher_score", "foreground", "assigned", "proposals", "masks"),
    "localization": ("all", "foreground", "assigned", "proposals"),
}
REDUCTIONS = ("mean", "sum")

MAX_TERMS = 20
MAX_WEIGHT = 1000.0
MAX_BACKGROUND = 1000.0
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MAX_WARM_UP = 10_000_000  # training steps
MAX_NAME = 40  # characters of a text that an error repeats
