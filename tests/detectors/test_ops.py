"""Every bridged op, called through mmcv's own wrappers, against a slow reference that follows its definition cell by cell."""

import math

import pytest
import torch
from torch import Tensor

from detkds_core.detectors import ops
from detkds_core.detectors.runtime import prepare_mmdet

prepare_mmdet()

import mmcv.ops as mmcv_ops  # noqa: E402  the bridge comes first
from mmcv.ops.deform_conv import deform_conv2d  # noqa: E402
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_boxes(n: int, size: float, generator: torch.Generator) -> Tensor:
    """(n, 4) xyxy, each side at least 1, inside a square of `size` pixels."""
    corners = torch.rand(n, 2, generator=generator) * (size * 0.6)
    sides = 1 + torch.rand(n, 2, generator=generator) * (size * 0.4 - 1)
    return torch.cat((corners, corners + sides), dim=1)


def iou(a: list[float], b: list[float], offset: int) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return width * height / (area_a + area_b - width * height)


# nms


def reference_nms(boxes: list[list[float]], scores: list[float], threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_nms_keeps_what_the_definition_keeps(device, offset, threshold):
    generator = torch.Generator().manual_seed(3)
    boxes, scores = random_boxes(120, 30, generator), torch.rand(120, generator=generator)
    dets, kept = mmcv_ops.nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    expected = reference_nms(boxes.tolist(), scores.tolist(), threshold, offset)
    assert kept.tolist() == expected
    assert 5 < len(expected) < 120
    torch.testing.assert_close(dets.cpu(), torch.cat((boxes, scores[:, None]), dim=1)[expected])


def test_nms_offset_decides_between_overlaps_of_two_sevenths_and_a_third():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])  # 36 / 126 in coordinates, 50 / 150 in pixels
    scores = torch.tensor([0.9, 0.8])
    assert mmcv_ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    assert mmcv_ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]


def test_nms_keeps_an_overlap_of_exactly_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])  # IoU 0.6
    assert mmcv_ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.6)[1].tolist() == [0, 1]


def test_nms_of_no_boxes_is_empty():
    dets, kept = mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long


def test_nms_in_half_precision_on_cpu_keeps_the_same_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.75, 0.25])
    assert mmcv_ops.nms(boxes.half(), scores.half(), 0.5)[1].tolist() == [1, 2]


# soft nms


def reference_soft_nms(
    boxes: list[list[float]], scores: list[float], threshold: float, sigma: float, min_score: float, method: str, offset: int
) -> tuple[list[int], list[float]]:
    left = dict(enumerate(scores))
    kept, final = [], []
    while left:
        best = max(left, key=lambda i: left[i])
        kept.append(best)
        final.append(left.pop(best))
        for i in list(left):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < min_score:
                del left[i]
    return kept, final


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_lowers_scores_as_the_definition_does(method, offset):
    generator = torch.Generator().manual_seed(5)
    boxes, scores = random_boxes(60, 30, generator), torch.rand(60, generator=generator)
    dets, kept = mmcv_ops.soft_nms(boxes, scores, 0.3, sigma=0.4, min_score=0.05, method=method, offset=offset)
    expected, lowered = reference_soft_nms(boxes.tolist(), scores.tolist(), 0.3, 0.4, 0.05, method, offset)
    assert kept.tolist() == expected
    assert 5 < len(expected) < 60
    torch.testing.assert_close(dets[:, :4], boxes[expected])
    torch.testing.assert_close(dets[:, 4], torch.tensor(lowered), rtol=1e-4, atol=1e-6)


def test_soft_nms_linear_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]])
    dets, kept = mmcv_ops.soft_nms(boxes, torch.tensor([1.0, 0.9, 0.5]), 0.3, method="linear")
    assert kept.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[:, 4], torch.tensor([1.0, 0.5, 0.36]))  # 0.9 (1 - 0.6)


def test_soft_nms_of_no_boxes_is_empty():
    dets, kept = mmcv_ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)


# RoIAlign and RoIPool


def bilinear(plane: Tensor, y: float, x: float) -> float:
    """Value at (y, x) of a (H, W) plane, clamped to its cells up to one cell outside, 0 beyond."""
    H, W = plane.shape
    if y < -1 or y > H or x < -1 or x > W:
        return 0.0
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
    dy, dx = y - y0, x - x0
    top = plane[y0, x0] * (1 - dx) + plane[y0, x1] * dx
    bottom = plane[y1, x0] * (1 - dx) + plane[y1, x1] * dx
    return float(top * (1 - dy) + bottom * dy)


def reference_roi_align(feat: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool) -> Tensor:
    C = feat.shape[1]
    out = torch.zeros(len(rois), C, *size)
    for n, (b, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0) for v in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        rows, columns = (ratio, ratio) if ratio else (math.ceil(bin_h), math.ceil(bin_w))
        for c in range(C):
            for i in range(size[0]):
                for j in range(size[1]):
                    samples = [
                        bilinear(feat[int(b), c], y1 + (i + (p + 0.5) / rows) * bin_h, x1 + (j + (q + 0.5) / columns) * bin_w)
                        for p in range(rows)
                        for q in range(columns)
                    ]
                    out[n, c, i, j] = sum(samples) / max(len(samples), 1)
    return out


ROIS = torch.tensor(
    [
        [0.0, 1.3, 2.1, 17.8, 12.4],
        [1.0, -6.0, -3.0, 9.0, 30.0],  # reaches out of the image
        [1.0, 8.0, 8.0, 8.3, 8.4],  # smaller than a cell
        [0.0, 60.0, 60.0, 80.0, 80.0],  # outside
        [0.0, 5.0, 5.0, 25.2, 25.7],
    ]
)  # (n, 5) batch index and xyxy, on an image of 32 px whose features have 8 cells


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_averages_the_samples_of_each_bin(device, aligned, ratio):
    feat = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pooled = mmcv_ops.RoIAlign((3, 2), 0.25, ratio, "avg", aligned)(feat.to(device), ROIS.to(device))
    torch.testing.assert_close(pooled.cpu(), reference_roi_align(feat, ROIS, (3, 2), 0.25, ratio, aligned), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_gradient(device, aligned, ratio):
    feat = torch.randn(2, 2, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    pool = mmcv_ops.RoIAlign((3, 2), 0.25, ratio, "avg", aligned)
    # CUDA adds the contributions to a cell in any order
    assert torch.autograd.gradcheck(lambda x: pool(x, ROIS.to(x)), (feat,), nondet_tol=1e-9, fast_mode=True)


def test_roi_align_takes_channels_last_features():
    feat = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pool = mmcv_ops.RoIAlign((2, 2), 0.25)
    torch.testing.assert_close(pool(feat.to(memory_format=torch.channels_last), ROIS), pool(feat, ROIS))


def test_roi_align_of_bfloat16_on_cpu_is_near_float32():
    feat = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    pool = mmcv_ops.RoIAlign((2, 2), 0.25)
    rounded = ROIS.bfloat16()
    pooled = pool(feat, rounded)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), pool(feat.float(), rounded.float()), rtol=1e-2, atol=1e-2)


def test_roi_align_of_no_regions_is_empty_and_trains():
    feat = torch.randn(1, 2, 4, 4, requires_grad=True)
    pooled = mmcv_ops.RoIAlign((2, 2), 0.25)(feat, torch.zeros(0, 5))
    assert pooled.shape == (0, 2, 2, 2)
    pooled.sum().backward()
    assert feat.grad is not None
    assert feat.grad.abs().sum() == 0


def test_roi_align_refuses_max_mode_by_name():
    with pytest.raises(NotImplementedError, match=r"roi_align_forward.*max"):
        mmcv_ops.RoIAlign((2, 2), pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4]]))


def reference_roi_pool(feat: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    _, C, H, W = feat.shape
    out = torch.zeros(len(rois), C, *size)
    for n, (b, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = corners[0] * scale, corners[1] * scale, (corners[2] + 1) * scale, (corners[3] + 1) * scale
        for i in range(size[0]):
            for j in range(size[1]):
                rows = range(max(0, math.floor(y1 + i * (y2 - y1) / size[0])), min(H, math.ceil(y1 + (i + 1) * (y2 - y1) / size[0])))
                columns = range(max(0, math.floor(x1 + j * (x2 - x1) / size[1])), min(W, math.ceil(x1 + (j + 1) * (x2 - x1) / size[1])))
                for c in range(C):
                    out[n, c, i, j] = max((float(feat[int(b), c, y, x]) for y in rows for x in columns), default=0.0)
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(3, 2), (7, 7)])
def test_roi_pool_takes_the_largest_cell_of_each_bin(device, size):
    feat = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 1  # mostly below 0: an empty bin is not a small one
    pooled = mmcv_ops.RoIPool(size, 0.25)(feat.to(device), ROIS.to(device))
    torch.testing.assert_close(pooled.cpu(), reference_roi_pool(feat, ROIS, size, 0.25))
    assert pooled[3].abs().sum() == 0  # outside the image


@pytest.mark.parametrize("device", DEVICES)
def test_roi_pool_gradient(device):
    feat = torch.randn(2, 2, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(2)).to(device).requires_grad_()
    pool = mmcv_ops.RoIPool((3, 2), 0.25)
    assert torch.autograd.gradcheck(lambda x: pool(x, ROIS.to(x)), (feat,), nondet_tol=1e-9, fast_mode=True)


def test_roi_pool_of_no_regions_is_empty_and_trains():
    feat = torch.randn(1, 2, 4, 4, requires_grad=True)
    pooled = mmcv_ops.RoIPool((2, 2), 0.25)(feat, torch.zeros(0, 5))
    assert pooled.shape == (0, 2, 2, 2)
    pooled.sum().backward()
    assert feat.grad is not None
    assert feat.grad.abs().sum() == 0


# deformable convolution


def bilinear_or_zero(plane: Tensor, y: float, x: float) -> float:
    """Value at (y, x) of a (H, W) plane that is surrounded by zeros."""
    H, W = plane.shape
    y0, x0 = math.floor(y), math.floor(x)
    total = 0.0
    for r, weight_r in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for c, weight_c in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            if 0 <= r < H and 0 <= c < W:
                total += float(plane[r, c]) * weight_r * weight_c
    return total


def reference_deform_conv(
    feat: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    """feat: (B, C, H, W); offset: (B, D, kH * kW, 2, H', W') as dy, dx; mask: (B, D, kH * kW, H', W'), D groups of channels."""
    B, C, _, _ = feat.shape
    D, out_h, out_w = offset.shape[1], offset.shape[4], offset.shape[5]
    out_c, in_c, kh, kw = weight.shape
    out = torch.zeros(B, out_c, out_h, out_w)
    for b in range(B):
        for o in range(out_c):
            first = o // (out_c // groups) * in_c
            for i in range(out_h):
                for j in range(out_w):
                    total = float(bias[o])
                    for c in range(in_c):
                        d = (first + c) // (C // D)
                        for k in range(kh * kw):
                            dy, dx = offset[b, d, k, :, i, j].tolist()
                            y = i * stride - padding + k // kw * dilation + dy
                            x = j * stride - padding + k % kw * dilation + dx
                            value = bilinear_or_zero(feat[b, first + c], y, x)
                            total += float(weight[o, c, k // kw, k % kw]) * float(mask[b, d, k, i, j]) * value
                    out[b, o, i, j] = total
    return out


GEOMETRIES = [  # stride, padding, dilation, groups, deform_groups
    (1, 1, 1, 1, 1),
    (2, 1, 1, 2, 1),
    (1, 2, 2, 1, 2),
    (2, 1, 1, 2, 4),
]


def deformable_case(geometry: tuple[int, ...], dtype: torch.dtype, size: int = 5, channels: int = 4) -> dict[str, Tensor]:
    stride, padding, dilation, groups, D = geometry
    generator = torch.Generator().manual_seed(7)
    out = (size + 2 * padding - 2 * dilation - 1) // stride + 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "feat": normal(2, channels, size, size),
        "offset": normal(2, D * 18, out, out) * 1.5,
        "mask": normal(2, D * 9, out, out).sigmoid(),
        "weight": normal(4, channels // groups, 3, 3),
        "bias": normal(4),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_deform_conv_moves_each_sample_by_its_offset(device, geometry):
    case = deformable_case(geometry, torch.float32)
    D = geometry[4]
    B, _, h, w = case["offset"].shape
    offset = case["offset"].reshape(B, D, 9, 2, h, w)
    mask = case["mask"].reshape(B, D, 9, h, w)
    on = {name: tensor.to(device) for name, tensor in case.items()}

    v1 = deform_conv2d(on["feat"], on["offset"], on["weight"], *geometry)
    expected = reference_deform_conv(case["feat"], offset, torch.ones_like(mask), case["weight"], torch.zeros(4), *geometry[:4])
    torch.testing.assert_close(v1.cpu(), expected, rtol=1e-4, atol=1e-4)

    v2 = modulated_deform_conv2d(on["feat"], on["offset"], on["mask"], on["weight"], on["bias"], *geometry)
    expected = reference_deform_conv(case["feat"], offset, mask, case["weight"], case["bias"], *geometry[:4])
    torch.testing.assert_close(v2.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_deform_conv_without_offsets_is_a_convolution(stride):
    case = deformable_case((stride, 1, 1, 2, 1), torch.float32)
    plain = torch.nn.functional.conv2d(case["feat"], case["weight"], None, stride, 1, 1, 2)
    torch.testing.assert_close(deform_conv2d(case["feat"], case["offset"] * 0, case["weight"], stride, 1, 1, 2), plain)
    half = modulated_deform_conv2d(case["feat"], case["offset"] * 0, case["mask"] * 0 + 0.5, case["weight"], case["bias"], stride, 1, 1, 2)
    torch.testing.assert_close(half, plain / 2 + case["bias"][:, None, None])


def test_deform_conv_keeps_height_and_width_apart():
    generator = torch.Generator().manual_seed(8)
    feat = torch.randn(1, 2, 7, 9, generator=generator)
    weight = torch.randn(2, 2, 3, 2, generator=generator, requires_grad=True)
    stride, padding, dilation = (2, 1), (0, 2), (1, 3)
    plain = torch.nn.functional.conv2d(feat, weight, None, stride, padding, dilation)
    (at_plain,) = torch.autograd.grad(plain.square().sum(), weight)
    taps = 3 * 2
    offset = torch.zeros(1, 2 * taps, *plain.shape[2:], requires_grad=True)
    mask = torch.ones(1, taps, *plain.shape[2:], requires_grad=True)
    for moved in (
        deform_conv2d(feat, offset, weight, stride, padding, dilation),
        modulated_deform_conv2d(feat, offset, mask, weight, None, stride, padding, dilation),
    ):
        torch.testing.assert_close(moved, plain)
        (at_moved,) = torch.autograd.grad(moved.square().sum(), weight)
        torch.testing.assert_close(at_moved, at_plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_deform_conv_gradients(device, geometry):
    case = {k: v.to(device).requires_grad_() for k, v in deformable_case(geometry, torch.double, size=3).items()}
    assert torch.autograd.gradcheck(
        lambda x, o, w: deform_conv2d(x, o, w, *geometry),
        (case["feat"], case["offset"], case["weight"]),
        nondet_tol=1e-9,
        fast_mode=True,
    )
    assert torch.autograd.gradcheck(
        lambda x, o, m, w, b: modulated_deform_conv2d(x, o, m, w, b, *geometry),
        (case["feat"], case["offset"], case["mask"], case["weight"], case["bias"]),
        nondet_tol=1e-9,
        fast_mode=True,
    )


def test_deform_conv_gradient_where_only_the_weight_learns():
    case = deformable_case((1, 1, 1, 1, 1), torch.double, size=3)
    weight = case["weight"].requires_grad_()
    assert torch.autograd.gradcheck(lambda w: deform_conv2d(case["feat"], case["offset"], w, 1, 1), (weight,), fast_mode=True)


def test_modulated_deform_conv_without_bias():
    case = deformable_case((1, 1, 1, 1, 1), torch.double, size=3)
    weight = case["weight"].requires_grad_()
    run = lambda w, b: modulated_deform_conv2d(case["feat"], case["offset"], case["mask"], w, b, 1, 1)  # noqa: E731
    torch.testing.assert_close(run(weight, None), run(weight, torch.zeros(4, dtype=torch.double)))
    assert torch.autograd.gradcheck(lambda w: run(w, None), (weight,), fast_mode=True)


def test_deform_conv_of_a_batch_beyond_the_im2col_step():
    case = deformable_case((1, 1, 1, 1, 1), torch.float32)
    four = {k: torch.cat((case[k], case[k])) for k in ("feat", "offset")}
    halves = deform_conv2d(case["feat"], case["offset"], case["weight"], 1, 1)
    whole = deform_conv2d(four["feat"], four["offset"], case["weight"], 1, 1, 1, 1, 1, False, 2)
    torch.testing.assert_close(whole, torch.cat((halves, halves)))


# focal loss


def reference_focal_loss(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float) -> Tensor:
    """By the paper's p_t and alpha_t, with torch's binary cross entropy as -log p_t."""
    K = logits.shape[1]
    own = torch.nn.functional.one_hot(target, K + 1)[:, :K].to(logits)
    p_t = torch.where(own == 1, logits.sigmoid(), 1 - logits.sigmoid())
    alpha_t = torch.where(own == 1, alpha, 1 - alpha)
    loss = alpha_t * (1 - p_t) ** gamma * torch.nn.functional.binary_cross_entropy_with_logits(logits, own, reduction="none")
    if weight is None:
        return loss
    return loss * torch.cat((weight, weight.new_ones(1)))[target][:, None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_sigmoid_focal_loss_and_its_gradient(device, weighted, gamma):
    generator = torch.Generator().manual_seed(9)
    logits = (torch.randn(8, 3, generator=generator, dtype=torch.double) * 3).to(device).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 3, 0, 1, 3], device=device)  # 3: background
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double, device=device) if weighted else None
    loss = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "none")
    torch.testing.assert_close(loss, reference_focal_loss(logits, target, weight, gamma, 0.25))
    for reduction in ("sum", "mean"):
        assert torch.autograd.gradcheck(
            lambda x, reduction=reduction: mmcv_ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, reduction), (logits,)
        )


def test_sigmoid_focal_loss_by_hand():
    # p = 1/2: 0.25 / 4 * ln 2 for the own class, 0.75 / 4 * ln 2 for the other
    loss = mmcv_ops.sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([0]), 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[0.0625 * math.log(2), 0.1875 * math.log(2)]]))


def test_sigmoid_focal_loss_grows_with_the_logit_without_a_jump():
    logits = torch.tensor([[16.0], [20.0], [40.0]], requires_grad=True)
    loss = mmcv_ops.sigmoid_focal_loss(logits, torch.ones(3, dtype=torch.long), 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss.detach(), 0.75 * logits.detach())  # p is 1 here and -log(1 - p) the logit
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((3, 1), 0.75), rtol=1e-4, atol=0)


def test_sigmoid_focal_loss_in_half_precision_stays_finite():
    logits = torch.tensor([[-30.0, 30.0]]).half()
    loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[7.5, 22.5]]).half())


# everything else


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: mmcv_ops.carafe(torch.zeros(1, 4, 2, 2), torch.zeros(1, 9, 4, 4), 3, 1, 2), "carafe_forward"),
        (lambda: mmcv_ops.box_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5)), "box_iou_rotated"),
        (lambda: mmcv_ops.softmax_focal_loss(torch.zeros(1, 2), torch.tensor([0])), "softmax_focal_loss_forward"),
    ],
)
def test_an_op_that_is_not_bridged_is_named(call, name):
    with pytest.raises(NotImplementedError, match=rf"mmcv op '{name}' is not bridged.*roi_align_forward.*compiled") as error:
        call()
    assert name not in ops.BRIDGED
    assert "nms" in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_ops_in_reduced_precision_are_near_float32(dtype):
    case = {k: v.cuda().to(dtype) for k, v in deformable_case((1, 1, 1, 1, 1), torch.float32).items()}
    wide = {k: v.float() for k, v in case.items()}
    names = ("feat", "offset", "mask", "weight", "bias")
    narrow_out = modulated_deform_conv2d(*(case[k] for k in names), 1, 1)
    assert narrow_out.dtype == dtype
    torch.testing.assert_close(narrow_out.float(), modulated_deform_conv2d(*(wide[k] for k in names), 1, 1), rtol=5e-2, atol=5e-2)
    pool = mmcv_ops.RoIAlign((2, 2), 0.25, 2)
    rois = ROIS.cuda().to(dtype)
    feat = torch.randn(2, 2, 8, 8, device="cuda").to(dtype)
    torch.testing.assert_close(pool(feat, rois).float(), pool(feat.float(), rois.float()), rtol=5e-2, atol=5e-2)
