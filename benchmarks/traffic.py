"""What the losses of a policy read and write, and how many kernels they launch: what they cost a GPU, counted without one.

`python benchmarks/traffic.py`, `--images 16`, `--policies "l2(norm_C(fgbg))"`. The losses and their gradient run on tensors of full size
that have no memory, as a GPU would compute them; of each operation but views, the bytes of what it reads and what it makes are added up.
Caches and kernels that read twice are not in it, nor is the detectors' own work. Signals are those of each pair's detectors with 80
classes: the maps of their pyramid, (images, 256, H, W), the outputs of their dense head, and 512 proposals an image for two-stage ones.
"""

import argparse
from collections import Counter
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.signals import Rois
from detkds_core.policy import named_policies, parse_formula

# Of each student: strides, anchors of a cell, classes of the dense head, whether it has proposals, its released policies.
PAIRS: dict[str, tuple[tuple[int, ...], int, int, bool, tuple[str, ...]]] = {
    "retinanet": ((8, 16, 32, 64, 128), 9, 80, False, ("detkds_retinanet", "detkds_retinanet_x101")),
    "gfl": ((8, 16, 32, 64, 128), 1, 80, False, ("detkds_gfl",)),
    "fcos": ((8, 16, 32, 64, 128), 1, 80, False, ("detkds_fcos",)),
    "faster_rcnn": ((4, 8, 16, 32, 64), 3, 1, True, ("detkds_faster_rcnn",)),
}
PROPOSALS, BINS, POINTS = 512, 17, 9
# They make no kernel: another look at memory, or memory that nothing is written to.
VIEWS = (
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "squeeze_", "t", "transpose", "unbind", "unsqueeze", "view"),
)
MEMORY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--policies", nargs="*", default=None, help="names or formulas in place of the released policies")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, default=7, help="ground-truth boxes an image")
    parser.add_argument("--operations", action="store_true", help="what is most of it")
    arguments = parser.parse_args()
    print("| pair | policy | GB | pyramids | kernels |\n|---|---|---|---|---|")
    for pair in arguments.pairs:
        for text in arguments.policies if arguments.policies is not None else PAIRS[pair][4]:
            moved, kernels, pyramid = traffic(pair, text, arguments.images, tuple(arguments.size), arguments.boxes)
            whole = sum(moved.values())
            print(f"| {pair} | {text} | {whole / 1e9:.1f} | {whole / pyramid:.0f} | {sum(kernels.values())} |")
            if arguments.operations:
                for name, size in moved.most_common(12):
                    print(f"    {name}: {size / pyramid:.1f} in {kernels[name]}")


def traffic(pair: str, text: str, images: int, size: tuple[int, int], boxes: int) -> tuple[Counter[str], Counter[str], int]:
    """Bytes moved and kernels launched, by operation, and the bytes of a pyramid."""
    strides, anchors, classes, two_stage, _ = PAIRS[pair]
    known = named_policies()
    policy = known[text].policy if text in known else parse_formula(text)
    if policy.distillers or not policy.terms:
        raise SystemExit(f"{text}: only terms are counted; learned parts are modules of their own")
    with patch("torch.autocast", lambda *_args, **_options: nullcontext()), torch.device("meta"):  # which has no autocast to switch off
        shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
        student, teacher = (signals(images, shapes, anchors, classes, two_stage) for _ in range(2))
        for x in tree_leaves([student.features, student.logits, student.boxes, student.edges, student.points]):
            x.requires_grad_()
        scene = Scene(tuple(torch.empty(boxes, 4) for _ in range(images)), size)
        with Traffic() as seen:
            sum(policy_losses(policy, student, teacher, scene).values()).backward()
    return seen.moved, seen.kernels, sum(x.numel() * x.element_size() for x in student.features)


def signals(images: int, shapes: list[tuple[int, int]], anchors: int, classes: int, two_stage: bool) -> Signals:
    def maps(channels: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty(images, channels, *shape).contiguous(memory_format=torch.channels_last) for shape in shapes)

    cells = [height * width for height, width in shapes]
    regions = images * PROPOSALS
    rois = Rois(torch.empty(regions, 5), torch.empty(regions, 81).requires_grad_(), torch.empty(regions, 80, 4).requires_grad_())
    return Signals(
        features=maps(256),
        logits=maps(anchors * classes),
        boxes=tuple(torch.empty(images, count * anchors, 4) for count in cells),
        edges=maps(4 * BINS),
        points=tuple(torch.empty(images, count, POINTS, 2) for count in cells),
        assigned=tuple(torch.empty(images, count * anchors, dtype=torch.bool) for count in cells),
        valuable=tuple(torch.empty(images, count * anchors) for count in cells),
        rois=rois if two_stage else None,
        classes=classes,
    )


class Traffic(TorchDispatchMode):
    """Counts what the operations within it move."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in (*VIEWS, *MEMORY):
            self.kernels[name] += 1
            self.moved[name] += sum(_bytes(x) for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
        return out


def _bytes(x: torch.Tensor) -> int:
    """Of what there is in memory: a tensor that is expanded is read once."""
    cells = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        cells *= length if stride else 1
    return cells * x.element_size()


if __name__ == "__main__":
    main()
