"""Multi-scale deformable attention (Deformable DETR) in plain PyTorch, as the ops that mmcv calls on a GPU.

On a CPU mmcv has a way of its own; on a GPU it asks its compiled module, which the bridge stands for (`ops`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_attention(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples of several maps (Zhu et al. 2021, equation 3): (B, Q, M*D).

    value: (B, sum of H*W, M, D), the maps one after the other, M heads; shapes: (H, W) of each; locations: (B, Q, M, L, P, 2), xy from 0 to
    1 over each of the L maps, outside is zero; weights: (B, Q, M, L, P).
    """
    B, Q, M, L, P = weights.shape
    D = value.shape[-1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).reshape(L, B * M, Q, P, 2)
    shares = weights.permute(3, 0, 2, 1, 4).reshape(L, B * M, 1, Q, P)
    total = value.new_zeros(B * M, D, Q)
    for (H, W), cells, grid, share in zip(shapes, value.split([H * W for H, W in shapes], dim=1), grids, shares, strict=True):
        plane = cells.permute(0, 2, 3, 1).reshape(B * M, D, H, W)
        samples = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)  # (B*M, D, Q, P)
        total = total + (samples * share).sum(-1)
    return total.view(B, M * D, Q).transpose(1, 2)


def ms_deform_attn_forward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    """`deformable_attention`; spatial_shapes: (L, 2) height and width. `level_start_index` follows from them."""
    return deformable_attention(value, _sides(spatial_shapes), locations, weights).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward` at value, locations and weights, written into the last three tensors."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = deformable_attention(inputs[0], _sides(spatial_shapes), *inputs[1:])
        gradients = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_locations, grad_weights), gradients, strict=True):
        target.copy_(gradient)


def _sides(spatial_shapes: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in spatial_shapes.tolist()]
