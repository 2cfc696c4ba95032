"""The rest of a teacher's dense head, from features in its middle on, for features that come from somewhere else (CrossKD)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from detkds_core.detectors.decode import decode_level
from detkds_core.detectors.tap import tower_place

PREDICTORS = {  # the last convolutions of the class and of the box branch
    "RetinaHead": ("retina_cls", "retina_reg"),
    "GFLHead": ("gfl_cls", "gfl_reg"),
    "ATSSHead": ("atss_cls", "atss_reg"),
    "FCOSHead": ("conv_cls", "conv_reg"),
}


def head_tail(head: nn.Module, levels: Sequence[int]) -> Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]] | None:
    """(class features, box features, level, layer) -> (class scores, box outputs) through what follows `Tap.towers` in a frozen head.

    level: a place in `levels`, the pyramid levels of the head that count. Box outputs: raw edge distributions (B, 4*(R+1), H, W) of GFL,
    decoded boxes (B, H*W*A, 4) of others. None for a head whose branches cannot be cut: see `PREDICTORS`.
    """
    names = PREDICTORS.get(type(head).__name__)
    if names is None:
        return None
    classify, regress = (getattr(head, name) for name in names)

    def rest(convs: nn.ModuleList, feat: Tensor, layer: int) -> Tensor:
        place = tower_place(convs, layer)
        conv = convs[place]
        # A module's activation acts in place, and the features are somebody's.
        feat = conv.activate(feat.clone()) if conv.with_activation else feat
        for later in convs[place + 1 :]:
            feat = later(feat)
        return feat

    def tail(class_features: Tensor, box_features: Tensor, level: int, layer: int) -> tuple[Tensor, Tensor]:
        place = levels[level]
        scores = classify(rest(head.cls_convs, class_features, layer))
        outputs = regress(rest(head.reg_convs, box_features, layer))
        if hasattr(head, "scales"):
            outputs = head.scales[place](outputs).float()
        if type(head).__name__ == "FCOSHead":
            outputs = outputs.clamp(min=0) * head.strides[place] if head.norm_on_bbox else outputs.exp()
        if hasattr(head, "integral"):
            return scores, outputs
        sizes = [tuple(scores.shape[-2:])]
        prior = head.prior_generator.single_level_grid_priors(sizes[0], place, device=scores.device)
        return scores, decode_level(head, outputs, prior, place)

    return tail
