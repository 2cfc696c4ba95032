"""The compiled operations that detectors need, from torchvision's kernels, under the names by which mmcv calls them.

mmcv's Python wrappers (`mmcv/ops/*.py`) call a compiled module, `mmcv._ext`. Building it takes half an hour and a compiler that
matches torch, while torchvision ships most of the same kernels for CPU and CUDA. `install` puts a module in that place whose functions
keep mmcv's convention: results are written into the tensors that the wrapper passes. Where torchvision has no kernel, or one
of another meaning (RoIPool rounds differently), plain PyTorch does the work.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor
from torch.nn.functional import logsigmoid

from detkds_core.detectors.attention_op import ms_deform_attn_backward, ms_deform_attn_forward


def _computable(tensor: Tensor) -> Tensor:
    """The tensor in a precision that torchvision's kernels take: they know half only on CUDA, and bfloat16 nowhere."""
    if tensor.dtype == torch.bfloat16 or (tensor.dtype == torch.float16 and tensor.device.type == "cpu"):
        return tensor.float()
    return tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that survive greedy suppression, by falling score (ties: lower index first).

    boxes: (n, 4) xyxy; scores: (n,). `offset` is added to every width and height (1: MMDetection v1 pixel boxes). A box goes
    when its IoU with a kept one is above the threshold. No boxes: an empty int64 tensor.
    """
    boxes = _computable(boxes)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in float32; a double threshold would put an IoU of 0.6f, which is a little more than 0.6, above it
    threshold = torch.tensor(iou_threshold, dtype=torch.promote_types(boxes.dtype, torch.float32)).item()
    kept: Tensor = torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), threshold)
    return kept


SOFT_NMS_METHODS = {0: "naive", 1: "linear", 2: "gaussian"}


def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int
) -> Tensor:
    """Soft suppression (Bodla et al. 2017): a box loses score to each better box it overlaps, instead of vanishing.

    boxes: (n, 4) xyxy; scores: (n,); dets: (n, 5), receives boxes and lowered scores in the order of the result, the kept ones first.
    method 0 zeroes the score at IoU >= iou_threshold, 1 multiplies it by 1 - IoU there, 2 by exp(-IoU^2 / sigma) everywhere.
    A box goes when its score falls below min_score, except the best one. Returns the indices of the kept boxes. No boxes: none.
    Equal scores: lower index first (the compiled op's order among equals depends on what it removed before).
    """
    if method not in SOFT_NMS_METHODS:
        raise ValueError(f"softnms: method {method} is not one of {SOFT_NMS_METHODS}")
    low, high = boxes[:, :2], boxes[:, 2:]
    areas = (high - low + offset).prod(dim=1)
    left = torch.arange(len(boxes))  # indices of the boxes still in the race
    scores = scores.clone()
    kept: list[int] = []
    while len(left):
        best = int(left[scores[left].argmax()])
        dets[len(kept), :4] = boxes[best]
        dets[len(kept), 4] = scores[best]
        kept.append(best)
        left = left[left != best]

        sides = (torch.minimum(high[best], high[left]) - torch.maximum(low[best], low[left]) + offset).clamp(min=0)
        shared = sides.prod(dim=1)
        iou = shared / (areas[best] + areas[left] - shared)
        if method == 2:
            factor = torch.exp(-(iou**2) / sigma)
        else:
            factor = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), torch.ones_like(iou))
        scores[left] *= factor
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long)


def _refuse_max_mode(op: str, pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(f"mmcv op '{op}' is bridged with pool_mode='avg' only, not 'max'. A compiled mmcv has it.")


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average bilinear samples over each bin of each region (He et al. 2017).

    input: (B, C, H, W); rois: (n, 5) batch index and xyxy in pixels of the image; output: (n, C, aligned_height, aligned_width).
    sampling_ratio 0: as many samples as the bin has cells. aligned: shift by half a cell. No regions: nothing happens.
    """
    _refuse_max_mode("roi_align_forward", pool_mode)
    x = _computable(input)
    pooled = torch.ops.torchvision.roi_align(x, rois.to(x.dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` at its input, written into grad_input: (B, C, H, W)."""
    _refuse_max_mode("roi_align_backward", pool_mode)
    grad = _computable(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            rois.to(grad.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _pooling_bins(low: Tensor, high: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First and past-the-last cell of each bin between low and high: two (n, bins), clipped to an axis of `size` cells."""
    step = ((high - low) / bins)[:, None]
    i = torch.arange(bins, device=low.device, dtype=low.dtype)
    first = (i * step + low[:, None]).floor().clamp(0, size)
    last = ((i + 1) * step + low[:, None]).ceil().clamp(0, size)
    return first.long(), last.long()


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Largest value in each bin of each region (Girshick 2015), with mmcv's bins.

    input: (B, C, H, W); rois: (n, 5) batch index and xyxy in pixels of the image, their last pixel included; output:
    (n, C, pooled_height, pooled_width); argmax: the same shape, the cell h * W + w that each value came from. A bin
    outside the image has value 0 and argmax -1. torchvision's kernel rounds regions to whole cells first, mmcv does not, hence this one.
    """
    C, H, W = input.shape[1:]
    output.zero_()
    argmax.fill_(-1)
    corners = rois[:, 1:].to(torch.promote_types(rois.dtype, torch.float32))
    x1, y1 = (corners[:, :2] * spatial_scale).unbind(dim=1)
    x2, y2 = ((corners[:, 2:] + 1) * spatial_scale).unbind(dim=1)
    top, bottom = _pooling_bins(y1, y2, pooled_height, H)  # (n, pooled_height) each
    left, right = _pooling_bins(x1, x2, pooled_width, W)
    # every number that decides a shape, read from the device once
    tallest = (bottom - top).amax(dim=1).tolist()
    widest = (right - left).amax(dim=1).tolist()
    usable = ((x2 > x1) & (y2 > y1)).tolist()
    image = rois[:, 0].long().tolist()
    for n in range(len(rois)):
        if not usable[n] or tallest[n] <= 0 or widest[n] <= 0:
            continue
        rows = top[n][:, None] + torch.arange(tallest[n], device=input.device)  # (pooled_height, tallest)
        columns = left[n][:, None] + torch.arange(widest[n], device=input.device)
        inside = (rows < bottom[n][:, None])[:, None, :, None] & (columns < right[n][:, None])[None, :, None, :]
        cells = (rows.clamp(max=H - 1) * W)[:, None, :, None] + columns.clamp(max=W - 1)[None, :, None, :]  # (ph, pw, tallest, widest)
        values = input[image[n]].reshape(C, H * W)[:, cells.flatten()].reshape(C, *cells.shape)
        values = values.masked_fill(~inside, -torch.inf).flatten(-2)  # (C, ph, pw, tallest * widest)
        best, where = values.max(dim=-1)
        source = cells.flatten(-2).expand_as(values).gather(-1, where[..., None])[..., 0]
        filled = inside.flatten(-2).any(dim=-1).expand_as(best)
        output[n] = torch.where(filled, best, torch.zeros_like(best))
        argmax[n] = torch.where(filled, source, torch.full_like(source, -1))


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Gradient of `roi_pool_forward` at its input, written into grad_input: each value's gradient goes to the cell it came from."""
    B, C, H, W = grad_input.shape
    plane = rois[:, 0].long()[:, None] * C + torch.arange(C, device=rois.device)  # (n, C), of the B * C planes
    target = plane[:, :, None, None] * (H * W) + argmax
    chosen = argmax >= 0
    grad = grad_input.new_zeros(B * C * H * W)
    grad.index_add_(0, target[chosen], grad_output[chosen])
    grad_input.copy_(grad.view(B, C, H, W))


def _deform_conv(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: tuple[int, ...]
) -> Tensor:
    """geometry: stride, padding, dilation (each y then x), groups, groups of offsets; mask None: every sample has weight 1."""
    x = _computable(input)
    output: Tensor = torch.ops.torchvision.deform_conv2d(
        x,
        weight.to(x.dtype),
        offset.to(x.dtype),
        x.new_zeros((len(x), 1)) if mask is None else mask.to(x.dtype),
        x.new_zeros(len(weight)) if bias is None else bias.to(x.dtype),
        *geometry,
        mask is not None,
    )
    return output


def _deform_conv_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, geometry: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients at input, weight, offset, mask and bias (the bias needs no value for it)."""
    x = _computable(input)
    gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(x.dtype),
        x,
        weight.to(x.dtype),
        offset.to(x.dtype),
        x.new_zeros((len(x), 1)) if mask is None else mask.to(x.dtype),
        x.new_zeros(len(weight)),
        *geometry,
        mask is not None,
    )
    return gradients


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution v1 (Dai et al. 2017): every sample of the kernel is moved by its own offset.

    input: (B, C, H, W); weight: (C', C / group, kH, kW); offset: (B, 2 * deformable_group * kH * kW, H', W'), y before x, in cells;
    output: (B, C', H', W'). `ones` and `im2col_step` only serve the compiled op.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_deform_conv(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of `deform_conv_forward` at input and offset.

    torchvision computes the weight's gradient along with them. mmcv asks for that in a second call with the same scratch tensor,
    `columns`, so it waits there: twice as fast as computing everything twice.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    at_input, at_weight, at_offset, _, _ = _deform_conv_gradients(grad_output, input, weight, offset, None, geometry)
    grad_input.copy_(at_input)
    grad_offset.copy_(at_offset)
    columns.resize_(at_weight.shape).copy_(at_weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of `deform_conv_forward` at its weight, times `scale`, added to grad_weight.

    `columns` brings it where `deform_conv_backward_input` went before, and is empty where only the weight needs a gradient.
    """
    at_weight = columns
    if not columns.numel():
        geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        # the gradient at the weight does not depend on the weight, which mmcv does not pass here
        any_weight = torch.zeros_like(grad_weight)
        _, at_weight, _, _, _ = _deform_conv_gradients(grad_output, input, any_weight, offset, None, geometry)
    grad_weight.add_(at_weight.to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution v2 (Zhu et al. 2019): every sample is moved by its own offset and scaled by its own mask.

    As `deform_conv_forward`, with mask: (B, deformable_group * kernel_h * kernel_w, H', W'); bias: (C',), or empty without.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_deform_conv(input, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of `modulated_deform_conv_forward`, each written into its tensor."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    gradients = _deform_conv_gradients(grad_output, input, weight, offset, mask, geometry)
    for out, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), gradients, strict=False):
        out.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])


def _class_weights(weight: Tensor, target: Tensor) -> Tensor | float:
    """Weight of each row's class, (n, 1): 1 where no weights are given, and for background rows, whose class has none."""
    if not weight.numel():
        return 1.0
    return torch.cat((weight, weight.new_ones(1)))[target][:, None]


def _focal_parts(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """p, 1 - p, their logarithms, and which class is the row's own; in float32 at least, each (n, K)."""
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    own = target[:, None] == torch.arange(input.shape[1], device=input.device)
    # not log(1 - p): in float32 that is log 0 from a logit of 17 on, where the compiled op jumps to 87
    return x.sigmoid(), (-x).sigmoid(), logsigmoid(x), logsigmoid(-x), own


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    """Focal loss of each logit (Lin et al. 2017): -alpha (1 - p)^gamma log p at the row's class, -(1 - alpha) p^gamma log(1 - p) elsewhere.

    input: (n, K) logits; target: (n,) int64 in 0..K, K is background; weight: (K,) of each class or empty; output: (n, K).
    """
    p, q, log_p, log_q, own = _focal_parts(input, target)
    loss = torch.where(own, -alpha * q**gamma * log_p, -(1 - alpha) * p**gamma * log_q)
    output.copy_(loss * _class_weights(weight, target))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float) -> None:
    """Derivative of each entry of `sigmoid_focal_loss_forward` by its logit, written into grad_input: (n, K)."""
    p, q, log_p, log_q, own = _focal_parts(input, target)
    slope = torch.where(own, -alpha * q**gamma * (q - gamma * p * log_p), -(1 - alpha) * p**gamma * (gamma * q * log_q - p))
    grad_input.copy_(slope * _class_weights(weight, target))


def get_compiler_version() -> str:
    """What mmcv reports about itself when an environment is described."""
    return "none, ops by torchvision"


def get_compiling_cuda_version() -> str:
    """As `get_compiler_version`: the CUDA that torchvision's kernels were built with, or that there is none."""
    return torch.version.cuda or "not available"


BRIDGED: dict[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        nms,
        softnms,
        roi_align_forward,
        roi_align_backward,
        roi_pool_forward,
        roi_pool_backward,
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}


def _unbridged(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv op '{name}' is not bridged to torchvision; one of {', '.join(sorted(BRIDGED))}. "
            "A detector that needs it needs mmcv with its compiled ops."
        )

    refuse.__name__ = name
    return refuse


class BridgeModule(ModuleType):
    """Stands for `mmcv._ext`, which mmcv asks at import whether it has each of some hundred ops.

    So it has every one, and those that are not bridged refuse when called.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unbridged(name)


def install() -> bool:
    """Put the bridge in the place of `mmcv._ext` and return True; leave a compiled one alone and return False. May be called again.

    Must come before `mmcv.ops` is first imported. Without mmcv: ModuleNotFoundError.
    """
    present = sys.modules.get("mmcv._ext")
    if present is not None:
        return isinstance(present, BridgeModule)
    if importlib.util.find_spec("mmcv._ext") is not None:
        return False
    bridge = BridgeModule("mmcv._ext", __doc__)
    bridge.__spec__ = ModuleSpec("mmcv._ext", None)  # importlib.util.find_spec refuses a loaded module without one
    for name, op in BRIDGED.items():
        setattr(bridge, name, op)
    sys.modules["mmcv._ext"] = bridge
    sys.modules["mmcv"]._ext = bridge  # type: ignore[attr-defined]
    return True
