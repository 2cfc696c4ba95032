"""Hand-designed distillers that are policies, against their published formulas on small numbers."""

import math

import pytest
import torch
from torch import Tensor

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.signals import Rois
from detkds_core.policy import named_policies, parse_formula

NOWHERE = Scene((torch.zeros(0, 4),), (8, 8), step=1000, total_steps=2000)


def loss(name: str, student: Signals, teacher: Signals, scene: Scene = NOWHERE) -> float:
    return sum(one.item() for one in policy_losses(named_policies()[name].policy, student, teacher, scene).values())


def maps(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def test_fitnets_is_the_mean_squared_difference() -> None:
    student, teacher = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(1, 2, 1, 2), torch.tensor([1.0, 0.0, 2.0, 2.0]).view(1, 2, 1, 2)
    assert loss("fitnets", Signals((student,)), Signals((teacher,))) == pytest.approx((0 + 4 + 1 + 9) / 4)


def test_pkd_is_half_the_weight_times_the_squared_difference_of_standardised_maps() -> None:
    # 0, 2 and 3, 7 have the standard deviations sqrt 2 and 2 sqrt 2: both are -+ 1/sqrt 2, and reversed they differ by sqrt 2.
    student, teacher = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2), torch.tensor([7.0, 3.0]).view(1, 1, 1, 2)
    assert loss("pkd", Signals((student,)), Signals((teacher,))) == pytest.approx(10 / 2 * 2, rel=1e-5)
    assert loss("pkd_two_stage", Signals((student,)), Signals((teacher,))) == pytest.approx(6 / 2 * 2, rel=1e-5)
    assert loss("pkd", Signals((student,)), Signals((5 * student + 1,))) == pytest.approx(0, abs=1e-6)


def test_cwd_is_a_divergence_over_positions_a_channel() -> None:
    # tau^2 / (C N) * sum over channels of KL(teacher || student) over positions; odds of 1 : 1 for 3 : 1 in one of two channels.
    student, teacher = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    teacher[0, 0, 0, 0] = math.log(3)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss("cwd", Signals((student,)), Signals((teacher,))) == pytest.approx(5 * divergence / 2, rel=1e-5)
    both = Signals((), (student,)), Signals((), (teacher,))
    assert loss("cwd_logits", *both) == pytest.approx(5 * divergence / 2, rel=1e-5)


def test_defeat_is_the_original_by_the_factor_of_its_note() -> None:
    # A box of 2 x 2 cells on a map of 4 x 4 cells of 2 pixels: FGD's masks count both ends, so it is 3 x 3 cells.
    student, teacher = maps(1, 5, 4, 4)
    inside = torch.zeros(4, 4)
    inside[:3, :3] = 1
    square = (student - teacher).square()[0].sum(0)
    n, M, C = 9, 16, 5
    foreground, background = 3 * (square * inside).sum() / (2 * n), 12 * (square * (1 - inside)).sum() / (2 * (M - n))
    wanted = foreground / (n * M * C / 2) + background / ((M - n) * M * C / 2)
    scene = Scene((torch.tensor([[0.0, 0.0, 4.0, 4.0]]),), (8, 8))
    assert loss("defeat", Signals((student,)), Signals((teacher,)), scene) == pytest.approx(wanted.item(), rel=1e-5)


def test_dist_relates_classes_of_a_cell_and_cells_of_a_class() -> None:
    # Scores of two classes on three cells; the teacher's are the student's with classes and cells both in another order.
    logits = maps(1, 4, 2, 3)
    scores = [x.sigmoid().view(4, 6).double() for x in logits]

    def pearson(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a, b, strict=True)])

    between_classes = 1 - pearson(scores[0].T, scores[1].T).mean()
    between_cells = 1 - pearson(scores[0], scores[1]).mean()
    student, teacher = (Signals((), (x,)) for x in logits)
    assert loss("dist", student, teacher) == pytest.approx((between_classes + between_cells).item(), rel=1e-5)


def test_ld_is_mmdetections_by_the_factor_of_its_note() -> None:
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    bins, cells = 17, 6
    student, teacher = maps(2, 4 * bins, 2, 3)
    scores, _ = maps(2, 80, 2, 3, seed=1)
    assigned = torch.rand(2, cells, generator=torch.Generator().manual_seed(2)) > 0.5

    def corners(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(-1, bins)

    # As LDHead: a sum over positive cells, weighted by the best class score, and a mean over four sides.
    criterion = KnowledgeDistillationKLDivLoss(loss_weight=0.25, T=10)
    weight = scores.sigmoid().amax(1).flatten() * assigned.flatten()
    theirs = criterion(corners(student), corners(teacher), weight=weight.repeat_interleave(4), avg_factor=4.0)
    ours = loss(
        "ld_main",
        Signals((), (scores,), edges=(student,), assigned=(assigned,)),
        Signals((), edges=(teacher,)),
        Scene((torch.zeros(0, 4),) * 2, (16, 24)),
    )
    assert ours * weight.sum().item() / bins == pytest.approx(theirs.item(), rel=1e-4)


def test_the_whole_ld_is_mmdetections_by_the_factors_of_its_note() -> None:
    """Two levels of two images; the original computes each level for itself."""
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    bins, classes, sizes = 17, 80, ((2, 3), (1, 2))
    edges = [maps(2, 4 * bins, *size, seed=level) for level, size in enumerate(sizes)]
    logits = [maps(2, classes, *size, seed=level + 5) for level, size in enumerate(sizes)]
    generator = torch.Generator().manual_seed(2)
    draws = [torch.rand(2, h * w, generator=generator) for h, w in sizes]
    assigned, valuable = [x > 0.5 for x in draws], [x * (x < 0.4) for x in draws]

    def rows(x: Tensor, width: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(-1, width)

    main, weights, region, scores = 0.0, 0.0, 0.0, []
    for (s, t), (a, b), taken, near in zip(edges, logits, assigned, valuable, strict=True):
        of_edges, of_classes = KnowledgeDistillationKLDivLoss(loss_weight=0.25, T=10), KnowledgeDistillationKLDivLoss(loss_weight=10, T=2)
        corners = rows(s, bins), rows(t, bins)
        weight = a.sigmoid().amax(1).flatten() * taken.flatten()
        main += of_edges(*corners, weight=weight.repeat_interleave(4), avg_factor=4.0).item()
        weights += weight.sum().item()
        region += of_edges(*corners, weight=near.flatten().repeat_interleave(4), avg_factor=16.0).item()
        positive = taken.flatten()
        scores.append(of_classes(rows(a, classes)[positive], rows(b, classes)[positive], avg_factor=int(positive.sum())).item())
    counts = [int(x.sum()) for x in assigned]
    ours = policy_losses(
        named_policies()["ld"].policy,
        Signals((), tuple(x for x, _ in logits), edges=tuple(x for x, _ in edges), assigned=tuple(assigned), valuable=tuple(valuable)),
        Signals((), tuple(x for _, x in logits), edges=tuple(x for _, x in edges)),
        Scene((torch.zeros(0, 4),) * 2, (16, 24)),
    )
    of_scores, of_main, of_region = (ours[name].item() for name in ("distill/0_logits", "distill/1_localization", "distill/2_localization"))
    assert of_main * weights / bins == pytest.approx(main, rel=1e-4)
    assert of_region * sum(x.sum().item() for x in valuable) / 4 / bins == pytest.approx(region, rel=1e-4)
    # A mean over the cells of all levels, where the original adds up the means of the levels.
    assert of_scores == pytest.approx(sum(one * count for one, count in zip(scores, counts, strict=True)) / sum(counts), rel=1e-4)


def test_frs_by_hand() -> None:
    # Two levels of one image; each its own mean weighted by the teacher's best score of each cell.
    features = [maps(1, 256, 2, 3), maps(1, 256, 1, 2, seed=1)]
    logits = [maps(1, 3, 2, 3, seed=2), maps(1, 3, 1, 2, seed=3)]
    wanted = 0.0
    for (s, t), (a, b) in zip(features, logits, strict=True):
        weight = b.sigmoid().amax(1)
        wanted += 0.005 * ((s - t).square().sum(1) * weight).sum() / weight.sum()
        p, q = b.sigmoid(), a.sigmoid()
        cross = -(p * q.log() + (1 - p) * (1 - q).log())
        own = -(p * p.log() + (1 - p) * (1 - p).log())
        wanted += 0.02 * ((cross - own).sum(1) * weight).sum() / weight.sum()
    student, teacher = (Signals(tuple(f[i] for f in features), tuple(z[i] for z in logits)) for i in range(2))
    assert loss("frs", student, teacher) == pytest.approx(wanted.item(), rel=1e-5)
    # Halfway through its warm-up of 500 steps.
    early = Scene(NOWHERE.boxes, NOWHERE.batch_shape, step=250, total_steps=2000)
    assert loss("frs", student, teacher, early) == pytest.approx(wanted.item() / 2, rel=1e-5)


def test_maskds_boxes_are_the_smooth_l1_of_the_box_branches_by_the_factors_of_its_note() -> None:
    """One proposal of one class, of which the teacher is sure, so that nothing weighs it; as mmdet's coder of RoI heads has it."""
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    coder = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    region = torch.tensor([[0.0, 10, 20, 50, 60]])
    student, teacher = torch.tensor([[14.0, 18, 60, 62]]), torch.tensor([[11.0, 20, 52, 57]])
    said = [coder.encode(region[:, 1:], box) for box in (student, teacher)]
    apart = (said[0] - said[1]).abs() / torch.tensor([10.0, 10, 5, 5])
    scores = torch.tensor([[50.0, -50.0]])
    sides = [Signals((), rois=Rois(region, scores, box[:, None])) for box in (student, teacher)]
    boxes = parse_formula("deltas[region=proposals](localization)")
    assert boxes.terms == named_policies()["maskd_two_stage_boxes"].policy.terms
    (found,) = policy_losses(boxes, *sides, NOWHERE).values()
    assert found.item() == pytest.approx(apart.mean().item(), rel=1e-5)
