"""The names and limits of the policy language, and what each kind of knowledge may be combined from.

One spelling everywhere: JSON, formula, database, tables.
"""

from collections.abc import Mapping

FEATURES = ("global", "fgbg", "instance")
RESPONSES = ("logits", "localization")
KNOWLEDGE = FEATURES + RESPONSES

ATTENTION = ("none", "satt", "natt", "catt", "mask", "drop")
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
    # What the published library defines and no released search could reach:
    "bmm",
    "mm",
    "pow2",
    "pow4",
    "sqrt",
    "log",
    "abs",
    "sigmoid",
    "swish",
    "tanh",
    "relu",
    "leaky_relu",
    "mish",
    "exp",
)

Slots = tuple[tuple[str, tuple[str, ...]], ...]

_NORMALISATION_SLOT = ("normalisation", NORMALISATION)
_FEATURE_SLOTS: Slots = (("attention", ATTENTION), ("scale", SCALE), _NORMALISATION_SLOT)

# The transforms of a term: what each is called and its choices, innermost first.
SLOTS: Mapping[str, Slots] = {
    **dict.fromkeys(FEATURES, _FEATURE_SLOTS),
    "logits": (_NORMALISATION_SLOT,),
    "localization": (("transform", ("none", "pow2")),),  # of the distance of each box: pow2 squares it
}

_TENSOR_DISTANCES = ("l1", "l2", "smooth_l1", "pear", "pear_HW", "pear_N", "cos", "kl", "cor", "ssim")
DISTANCES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(FEATURES, _TENSOR_DISTANCES),
    "logits": (*_TENSOR_DISTANCES, "kl_sigmoid"),
    "localization": ("l1", "iou", "giou", "diou", "kl_edges", "points", "deltas"),
}
DIVERGENCES = ("kl", "kl_edges")  # the distances that have a temperature
SHAREABLE = ("satt", "catt")  # the attentions that the teacher can lend to both sides

# Where a term looks. `all` is the knowledge's own place: every position, FGD's masks, ground-truth boxes, every cell, cells weighted by
# the teacher's best class score. `assigned_score` are the predictions of `assigned`, weighted by the student's own best class score.
REGIONS: Mapping[str, tuple[str, ...]] = {
    "global": ("all", "teacher_score"),
    "fgbg": ("all",),
    "instance": ("all", "proposals"),
    "logits": ("all", "teacher_score", "foreground", "assigned", "assigned_score", "valuable", "proposals", "masks"),
    "localization": ("all", "foreground", "assigned", "assigned_score", "valuable", "proposals"),
}
UNSEARCHED = ("assigned_score",)  # the regions of hand-designed policies that a search does not draw: it has `assigned`
REDUCTIONS = ("mean", "sum")

# What names have in common, whatever their slot.
ELEMENTWISE = ("l1", "l2", "smooth_l1")  # means over elements that see no layout
OVER_IMAGES = ("norm_N", "softmax_N", "logsoftmax_N")
OVER_CHANNELS = ("norm_C", "softmax_C", "logsoftmax_C")
OVER_POSITIONS = ("norm_HW", "softmax_HW", "logsoftmax_HW")
STATISTICS = ("batchnorm", "standardize")
GRAMS = ("bmm", "mm")
FLATTENING = ("batch", "channel", "softmax_HW", "logsoftmax_HW", *GRAMS)  # what leaves no map (N, C, H, W)
POINTWISE = ("pow2", "pow4", "sqrt", "log", "abs", "sigmoid", "swish", "tanh", "relu", "leaky_relu", "mish", "exp")
RECTIFIERS = ("abs", "relu", "leaky_relu")  # change nothing that is not negative

# The searches that a space can be for: what the published one could reach, with PKD's standardisation and the paper's SSIM; or everything.
BREADTHS = ("published", "full")
UNPUBLISHED = frozenset({"drop", *GRAMS, *POINTWISE, "pear_HW", "pear_N", "kl_sigmoid", "diou", "points", "deltas"})

MAX_TERMS = 20
MAX_WEIGHT = 1e9  # a loss that is small by nature (of squares of a softmax) may need much to weigh as the task does
MAX_BACKGROUND = 1000.0
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MAX_WARM_UP = 10_000_000  # training steps
MAX_NAME = 40  # characters of a text that an error repeats

# What to write instead of a name that DetKDS or the literature knows, where a vocabulary does not have it.
NOT_OFFERED: Mapping[str, str] = {
    **dict.fromkeys(("no", "identity"), "written 'none' here"),
    "multi_scale_r2": "2 x 2 max pooling is 'scale_r2'",
    "scale_r4": "4 x 4 max pooling is 'multi_scale_r4'",
    **dict.fromkeys(("min_max", "minmax"), "written 'min_max_normalize'"),
    **dict.fromkeys(("bn", "batch_norm", "instance_norm", "layer_norm"), "of this kind there are 'batchnorm' and 'standardize'"),
    **dict.fromkeys(("softmax", "log_softmax", "logsoftmax", "norm"), "it needs its axis: _N, _C or _HW"),
    **dict.fromkeys(("gram", "channel_gram"), "the gram of the channels is 'bmm'"),
    "batch_gram": "the gram of the images is 'mm'",
    **dict.fromkeys(("dropout", "dropout2d"), "whole channels are dropped by the attention 'drop'"),
    **dict.fromkeys(("mse", "l2_loss", "hint"), "written 'l2'"),
    **dict.fromkeys(("mae", "l1_loss"), "written 'l1'"),
    "huber": "written 'smooth_l1'",
    **dict.fromkeys(("cosine", "cosine_similarity"), "written 'cos', which is 1 - the similarity"),
    **dict.fromkeys(("pearson", "pcc", "correlation"), "'pear' runs over the channels, 'pear_HW' and 'pear_N' over positions and images"),
    **dict.fromkeys(("kl_T1", "kl_T4", "kl_T8"), "written 'kl' with its temperature, as in kl[T=4]"),
    **dict.fromkeys(("bce", "binary_cross_entropy", "kl_binary"), "of logits it is 'kl_sigmoid', which is 0 where the detectors agree"),
    "ce": "of logits it is 'kl' after a softmax, which is 0 where the detectors agree",
    **dict.fromkeys(("js", "reverse_kl", "emd", "mmd", "cka", "nst"), "no loss of this kind is in the language"),
    "ciou": "'diou' is its part that no aspect ratio enters",
    **dict.fromkeys(ATTENTION[1:], "an attention, which features have"),
    **dict.fromkeys(SCALE[1:], "a scale, which features have"),
    **dict.fromkeys(NORMALISATION[1:], "a normalisation, which features and logits have"),
    **dict.fromkeys(_TENSOR_DISTANCES, "a distance of features and logits"),
    "kl_sigmoid": "it reads raw class scores, which logits have",
    **dict.fromkeys(DISTANCES["localization"][1:], "a distance of boxes, which localization has"),
    "pow2": "of features and logits a normalisation, of localization the square of the distance of each box",
    "l1": "a distance",
    **dict.fromkeys(("gt", "fg", "boxes"), "cells inside ground-truth boxes are 'foreground'"),
    **dict.fromkeys(("frs", "score"), "the teacher's best class score is 'teacher_score'"),
    "student_score": "the student's best class score weighs what 'assigned_score' looks at",
    **dict.fromkeys(("rpn", "rois", "roi"), "shared proposals are 'proposals'"),
    "vlr": "LD's valuable localization region is 'valuable'",
    **dict.fromkeys(("neck", "fpn", "feature", "features", "backbone"), "features are 'global', 'fgbg' or 'instance'"),
    **dict.fromkeys(("cls", "classification", "scores"), "class scores are 'logits'"),
    **dict.fromkeys(("reg", "regression", "bbox"), "boxes are 'localization'"),
    "batchmean": "written 'sum', over all but the images",
}
