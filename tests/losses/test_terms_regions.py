"""Where a term looks and how its numbers become one, on a few cells worked out by hand."""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkds_core.losses import Scene, Signals, needs, policy_losses
from detkds_core.losses.distances import DISTANCES
from detkds_core.losses.policy import schedule
from detkds_core.losses.regions import cells_of, cut_proposals, proposal_samples
from detkds_core.losses.signals import Rois
from detkds_core.policy import Policy, Term, parse_formula
from detkds_core.policy.vocabulary import SLOTS

BOX, NOTHING = torch.tensor([[0.0, 0.0, 7.0, 7.0]]), torch.zeros(0, 4)
QUARTERS = torch.tensor([log(3), -log(3)])  # scores of 3/4 and 1/4


def scene(*boxes: Tensor, **when: Any) -> Scene:
    return Scene(boxes or (NOTHING,), (16, 16), **when)


def term(knowledge: str, distance: str = "l1", transforms: tuple[str, ...] | None = None, weight: float = 1.0, **options: Any) -> Term:
    slots = len(SLOTS[knowledge])
    return Term(knowledge, transforms or ("none",) * slots, distance, weight, **options)


def value(a_term: Term, student: Signals, teacher: Signals, where: Scene) -> float:
    (loss,) = policy_losses(Policy((a_term,)), student, teacher, where).values()
    return loss.item()


def test_needs_of_regions() -> None:
    assert needs(parse_formula("l2[region=teacher_score](global)")) == {"features", "logits"}
    assert needs(parse_formula("l1[region=proposals](instance)")) == {"features", "rois"}
    assert needs(parse_formula("l1[region=foreground](logits)")) == {"logits"}
    assert needs(parse_formula("kl_sigmoid[region=assigned](logits)")) == {"logits", "assigned"}
    assert needs(parse_formula("l1[region=proposals](logits)")) == {"rois", "roi_scores"}
    assert needs(parse_formula("l1[region=masks](logits)")) == {"rois", "roi_masks"}
    assert needs(parse_formula("points(localization)")) == {"points", "logits"}
    assert needs(parse_formula("giou[region=foreground](localization)")) == {"boxes", "logits"}
    assert needs(parse_formula("kl_edges[region=assigned](localization)")) == {"edges", "assigned"}
    assert needs(parse_formula("kl_edges[region=assigned_score](localization)")) == {"edges", "assigned", "logits"}
    assert needs(parse_formula("kl[region=assigned_score](softmax_C(logits))")) == {"logits", "assigned"}
    # Whose maps tell how large a cell is: a box counts as at least one.
    assert needs(parse_formula("l1[region=assigned](localization)")) == {"boxes", "assigned", "logits"}
    assert needs(parse_formula("points[region=valuable](localization)")) == {"points", "valuable", "logits"}
    assert needs(parse_formula("giou[region=valuable](localization) + l1[region=valuable](logits)")) == {"boxes", "logits", "valuable"}
    assert needs(parse_formula("deltas[region=proposals](localization)")) == {"rois", "roi_scores", "roi_boxes"}
    assert needs(parse_formula("crosskd + l2(global)")) == {"features", "towers_3", "assigned"}
    assert needs(parse_formula("crosskd[layer=2]")) == {"towers_2", "assigned"}


def test_a_sliver_of_a_box_counts_as_wide_as_a_cell_wherever_it_is_looked_at() -> None:
    # 16 pixels and two cells: 2 of 4 sides are 2 pixels apart, of a box that is 1 pixel wide and counts as 8, so 2/4 · 2/8.
    theirs = torch.tensor([[[4.0, 0, 5, 8], [4, 0, 5, 8]]])
    logits = torch.zeros(1, 1, 1, 2)
    student = Signals((), (logits,), boxes=((theirs + torch.tensor([2.0, 0, 2, 0])).requires_grad_(),), assigned=(torch.ones(1, 2) > 0,))
    teacher = Signals((), (logits,), boxes=(theirs,))
    for region in ("all", "assigned", "assigned_score"):
        assert value(term("localization", "l1", region=region), student, teacher, scene()) == pytest.approx(1 / 8)
    with pytest.raises(ValueError, match="it needs the teacher's logits on 1 levels, got 0"):
        value(term("localization", "l1", region="assigned"), student, Signals((), boxes=(theirs,)), scene())


def test_decay_is_half_a_cosine() -> None:
    decaying = term("global", decay=0.2)
    assert [schedule(decaying, step, 10) for step in (0, 5, 10)] == pytest.approx([1, 0.6, 0.2])
    assert schedule(term("global", decay=0.2, warm_up=10), 5, 10) == pytest.approx(0.3)
    assert schedule(term("global", decay=0.0, stop=0.5), 5, 10) == 0


def test_scales_are_for_auto_terms() -> None:
    ones = Signals((torch.ones(1, 1, 2, 2),)), Signals((torch.zeros(1, 1, 2, 2),))
    policy = Policy((term("global", weight=2.0, auto=True), term("global", weight=2.0), term("global", weight=2.0, auto=True)))
    losses = policy_losses(policy, *ones, scene(), {"distill/0_global": 3.0, "distill/1_global": 5.0})
    assert [loss.item() for loss in losses.values()] == [6, 2, 2]


def test_a_sum_is_over_all_but_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator)
    sides, where = (Signals((student,), (student,)), Signals((teacher,), (teacher,))), scene(NOTHING, NOTHING)
    assert value(term("global", "l2", reduction="sum"), *sides, where) == pytest.approx(
        ((student - teacher) ** 2).sum().item() / 2, rel=1e-5
    )
    for formula, count in (("kl[reduction=sum](softmax_C(logits))", 20), ("kl[reduction=sum](softmax_HW(logits))", 3)):
        (summed,), (mean,) = parse_formula(formula).terms, parse_formula(formula.replace("[reduction=sum]", "")).terms
        assert value(summed, *sides, where) == pytest.approx(count * value(mean, *sides, where), rel=1e-5)
    (summed,), (mean,) = (parse_formula(f).terms for f in ("kl_sigmoid[reduction=sum](logits)", "kl_sigmoid(logits)"))
    assert value(summed, *sides, where) == pytest.approx(20 * value(mean, *sides, where), rel=1e-5)
    with pytest.raises(ValueError, match="'pear' has no sum"):
        value(term("global", "pear", reduction="sum"), *sides, where)


def test_teacher_score_is_a_weighted_mean_of_each_level() -> None:
    # Scores 3/4 and 1/4 of two cells (of two classes the best counts); differences 2 and 4, and 1 on another level.
    feat = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2)
    logits = torch.stack([QUARTERS, torch.full((2,), -9.0)]).view(1, 2, 1, 2)
    student = Signals((feat, torch.ones(1, 1, 1, 1)))
    teacher = Signals((0 * feat, torch.zeros(1, 1, 1, 1)), (logits, torch.zeros(1, 2, 1, 1)))
    assert value(term("global", region="teacher_score"), student, teacher, scene()) == pytest.approx(0.75 * 2 + 0.25 * 4 + 1)
    with pytest.raises(ValueError, match="weighs positions"):
        value(term("global", transforms=("none", "none", "batch"), region="teacher_score"), student, teacher, scene())
    with pytest.raises(ValueError, match="weighs \\(1, 1, 2\\) cells"):
        value(term("global", transforms=("none", "scale_r2", "none"), region="teacher_score"), student, teacher, scene())


def of_logits(*levels: Tensor, **places: tuple[Tensor, ...]) -> tuple[Signals, Signals]:
    return Signals((), levels, **places), Signals((), tuple(torch.zeros_like(level) for level in levels))


def test_foreground_is_inside_boxes_over_all_levels_together() -> None:
    # 2 x 2 cells of 8 pixels: the box reaches cell 1 at both ends; cells of the second image have none. Sigmoids differ by 1/4 and 0.
    fine = torch.full((2, 1, 2, 2), log(3))
    fine[0, 0, 1, 1] = 0
    coarse = torch.full((2, 1, 1, 1), log(3))
    student, teacher = of_logits(fine, coarse)
    # Image 0: four fine cells, of which one is equal, and one coarse cell.
    assert value(term("logits", region="foreground"), student, teacher, scene(BOX, NOTHING)) == pytest.approx((3 + 1) / 5 / 4)
    with pytest.raises(ValueError, match="boxes for 1 images, the batch 2"):
        value(term("logits", region="foreground"), student, teacher, scene(BOX))


def test_assigned_cells_of_any_anchor() -> None:
    # Two anchors of one class on two cells: cell-major; the second cell's second anchor is assigned. It differs by 1/4 and 0.
    logits = torch.tensor([[5.0, log(3)], [5.0, 0.0]]).view(1, 2, 1, 2)
    student, teacher = of_logits(logits, assigned=(torch.tensor([[False, False, False, True]]),))
    assert value(term("logits", region="assigned"), student, teacher, scene()) == pytest.approx(0.25 / 2)
    nowhere = of_logits(logits, assigned=(torch.zeros(1, 4, dtype=torch.bool),))
    assert value(term("logits", region="assigned"), *nowhere, scene()) == 0


def test_assigned_predictions_count_by_the_students_best_class_score() -> None:
    # Two predictions of two classes on two cells; the second cell's are not assigned. Best scores 3/4 and 1/4 of the first cell's, where
    # sigmoids differ by 1/4 in one class of the first and by 1/2 in one of the second. The teacher's best scores are 1/2 and 3/4.
    even, high, low = 0.0, log(3), -log(3)
    ours = torch.tensor([[high, high], [low, even], [low, low], [low, high]]).view(1, 4, 1, 2).requires_grad_()
    theirs = torch.tensor([[even, low], [low, low], [low, high], [high, low]]).view(1, 4, 1, 2)
    student = Signals((), (ours,), assigned=(torch.tensor([[True, True, False, False]]),), classes=2)
    teacher = Signals((), (theirs,), classes=2)
    (loss,) = policy_losses(Policy((term("logits", region="assigned_score"),)), student, teacher, scene()).values()
    assert loss.item() == pytest.approx(3 / 4 * (1 / 4) / 2 + 1 / 4 * (1 / 2) / 2)
    loss.backward()
    # Each class's share of its prediction's weight, and the slope 3/16 of a sigmoid of 3/4 or 1/4: the weights have none of their own.
    slopes = torch.tensor([3 / 4, 0, 0, -1 / 4]) / 2 * 3 / 16
    assert_close(ours.grad[0, :, 0], torch.stack([slopes, torch.zeros(4)], dim=1))


def test_assigned_boxes_count_by_the_students_score_over_all_levels_together() -> None:
    # 1 - IoU is 1/2 at both cells, where the student's scores are 1/4 and 3/4, and 1 at the only cell of another level, of score 1/2.
    student, teacher = boxes_at_two_cells()
    other = torch.tensor([[[0.0, 0, 4, 4]]])
    ours, theirs = (*student.boxes, other + 8), (*teacher.boxes, other)
    assigned = (torch.tensor([[True, True]]), torch.tensor([[True]]))
    student = Signals((), (-QUARTERS.view(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)), boxes=ours, assigned=assigned)
    teacher = Signals((), (*teacher.logits, torch.full((1, 1, 1, 1), 9.0)), boxes=theirs)
    weighted = term("localization", "iou", region="assigned_score")
    assert value(weighted, student, teacher, scene()) == pytest.approx((1 / 4 / 2 + 3 / 4 / 2 + 1 / 2) / (1 / 4 + 3 / 4 + 1 / 2))
    first = replace(student, assigned=(torch.tensor([[True, False]]), torch.tensor([[True]])))
    assert value(weighted, first, teacher, scene()) == pytest.approx((1 / 4 / 2 + 1 / 2) / (1 / 4 + 1 / 2))
    nowhere = replace(student, assigned=tuple(~x for x in assigned))
    assert value(weighted, nowhere, teacher, scene()) == 0
    with pytest.raises(ValueError, match="it looks at 'assigned_score' cells, which the student does not give"):
        value(weighted, replace(student, logits=()), teacher, scene())


def test_assigned_edges_count_by_the_students_score_which_they_do_not_teach() -> None:
    # Odds of 1 : 1 for 3 : 1 at all sides of a cell of score 3/4; one of score 1/4 agrees.
    even, odds = torch.zeros(1, 8, 1, 2), torch.zeros(1, 8, 1, 2)
    odds[0, ::2, 0, 0] = log(3)
    scores = QUARTERS.view(1, 1, 1, 2).clone().requires_grad_()
    student = Signals((), (scores,), edges=(even.requires_grad_(),), assigned=(torch.tensor([[True, True]]),))
    teacher = Signals((), (0 * QUARTERS.view(1, 1, 1, 2),), edges=(odds,))
    (loss,) = policy_losses(Policy((term("localization", "kl_edges", region="assigned_score"),)), student, teacher, scene()).values()
    assert loss.item() == pytest.approx(3 / 4 * (0.75 * log(1.5) + 0.25 * log(0.5)))
    loss.backward()
    assert even.grad.abs().sum() > 0
    assert scores.grad is None


def test_valuable_cells_count_by_their_overlap() -> None:
    # Two anchors of one class on three cells, cell-major: the cells overlap by 0.3 at most, 0.1 and not at all. They differ by 1/4, 0, 1/4.
    logits = torch.tensor([[log(3), 0.0, log(3)], [log(3), 0.0, log(3)]]).view(1, 2, 1, 3)
    student, teacher = of_logits(logits, valuable=(torch.tensor([[0.2, 0.3, 0.1, 0.0, 0.0, 0.0]]),))
    assert value(term("logits", region="valuable"), student, teacher, scene()) == pytest.approx(0.25 * 0.3 / 0.4)
    student, teacher = boxes_at_two_cells(valuable=(torch.tensor([[0.3, 0.1]]),))
    student.boxes[0][0, 1] = teacher.boxes[0][0, 1]  # 1 - IoU is 1/2 at the first cell alone
    assert value(term("localization", "iou", region="valuable"), student, teacher, scene()) == pytest.approx(0.5 * 0.3 / 0.4)
    nowhere = boxes_at_two_cells(valuable=(torch.zeros(1, 2),))
    assert value(term("localization", "iou", region="valuable"), *nowhere, scene()) == 0
    with pytest.raises(ValueError, match="it looks at 'valuable' cells, which the student does not give"):
        value(term("localization", "iou", region="valuable"), *boxes_at_two_cells(), scene())


def boxes_at_two_cells(**signals: Any) -> tuple[Signals, Signals]:
    theirs = torch.tensor([[[0.0, 0, 16, 8], [8, 8, 16, 16]]])
    ours = torch.tensor([[[0.0, 0, 8, 8], [8, 8, 16, 12]]])
    return Signals((), boxes=(ours,), **signals), Signals((), logits=(QUARTERS.view(1, 1, 1, 2),), boxes=(theirs,))


def test_localization_looks_where_it_is_told() -> None:
    # 1 - IoU is 1/2 at both cells; each counts by its score, inside the box of the left half alone, or as 1 where assigned.
    student, teacher = boxes_at_two_cells(assigned=(torch.tensor([[True, True]]),))
    left = torch.tensor([[0.0, 0.0, 6.0, 16.0]])
    assert value(term("localization", "iou"), student, teacher, scene(left)) == pytest.approx(0.5)
    assert value(term("localization", "iou", ("pow2",)), student, teacher, scene(left)) == pytest.approx(0.25)
    ours = student.boxes[0].clone()
    ours[0, 1] = teacher.boxes[0][0, 1]  # the second cell is equal
    student = Signals((), boxes=(ours,), assigned=student.assigned)
    assert value(term("localization", "iou"), student, teacher, scene(left)) == pytest.approx(0.75 / 2)
    assert value(term("localization", "iou", region="assigned"), student, teacher, scene(left)) == pytest.approx(1 / 4)
    right = torch.tensor([[9.0, 0.0, 15.0, 16.0]])
    assert value(term("localization", "iou", region="foreground"), student, teacher, scene(right)) == 0
    assert value(term("localization", "iou", region="foreground"), student, teacher, scene(NOTHING)) == 0
    narrow = torch.tensor([[0.0, 0.0, 0.0, 16.0]])  # the first column alone
    assert value(term("localization", "iou", region="foreground"), student, teacher, scene(narrow)) == pytest.approx(0.5)


def test_levels_of_localization_count_together() -> None:
    # The second level has a cell of score 1/4, without an overlap.
    student, teacher = boxes_at_two_cells()
    other = torch.tensor([[[0.0, 0, 4, 4]]])
    student = Signals((), boxes=(*student.boxes, other + 8))
    teacher = Signals((), logits=(*teacher.logits, QUARTERS[1:].view(1, 1, 1, 1)), boxes=(*teacher.boxes, other))
    assert value(term("localization", "iou"), student, teacher, scene()) == pytest.approx((0.75 / 2 + 0.25 / 2 + 0.25) / 1.25)


def test_points() -> None:
    # The hull of the teacher's points is 16 x 8 and 8 x 8 pixels; one point is 4 to the right. A cell is 8 pixels.
    theirs = torch.tensor([[[[0.0, 0], [16, 8]], [[8, 8], [16, 16]]]])
    ours = theirs.clone()
    ours[0, 0, 0, 0] += 4
    logits = (QUARTERS.view(1, 1, 1, 2),)
    sides = Signals((), points=(ours,)), Signals((), logits=logits, points=(theirs,))
    assert value(term("localization", "points"), *sides, scene()) == pytest.approx(0.75 * (4 / 16) / 4)


def rois(**values: Any) -> Signals:
    return Signals((), rois=Rois(torch.tensor([[0.0, 0, 0, 10, 20], [0, 0, 0, 10, 10]]), **values))


SCORES = torch.tensor([[0.6, 0.1, 0.3], [0.1, 0.2, 0.7]]).log()  # two classes and background


def test_scores_of_proposals_pass_the_softmax_except_under_kl() -> None:
    even = torch.zeros(2, 3)
    student, teacher = rois(scores=even), rois(scores=SCORES)
    expected = ((SCORES.exp() - 1 / 3).abs().sum() / 6).item()
    assert value(term("logits", region="proposals"), student, teacher, scene()) == pytest.approx(expected)
    kl = (SCORES.exp() * (SCORES - log(1 / 3))).sum().item() / 2
    assert value(term("logits", "kl", ("softmax_C",), region="proposals"), student, teacher, scene()) == pytest.approx(kl)


def test_boxes_of_proposals_are_of_the_teachers_likeliest_class() -> None:
    # It is sure of class 0 by 0.6 in the first and of class 1 by 0.2 in the second, where the boxes are equal.
    theirs = torch.tensor([[[0.0, 0, 4, 10], [0, 0, 9, 9]], [[0, 0, 9, 9], [0, 0, 5, 5]]])
    ours = theirs.clone()
    ours[0, 0] = torch.tensor([-1.0, 2, 7, 12])  # centres 1 and 2 apart, twice as wide
    ours[0, 1] = ours[1, 0] = 100.0  # of classes that do not count
    student, teacher = rois(boxes=ours), rois(boxes=theirs, scores=SCORES)
    expected = 0.6 * (1 / 10 + 2 / 20 + log(2)) / 4 / 0.8
    assert value(term("localization", "deltas", region="proposals"), student, teacher, scene()) == pytest.approx(expected)
    expected = 0.6 * (1 - 4 * 8 / (4 * 10 + 8 * 10 - 4 * 8)) / 0.8
    assert value(term("localization", "iou", region="proposals"), student, teacher, scene()) == pytest.approx(expected)


def test_mask_scores_pass_the_sigmoid_except_under_kl() -> None:
    teacher = rois(masks=QUARTERS.view(1, 1, 1, 2))
    student = rois(masks=torch.zeros(1, 1, 1, 2))
    assert value(term("logits", region="masks"), student, teacher, scene()) == pytest.approx(0.25)
    kl = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert value(term("logits", "kl_sigmoid", region="masks"), student, teacher, scene()) == pytest.approx(kl)


def test_instances_of_proposals() -> None:
    # The maps differ by 2 on the fine level alone, where both proposals are read.
    fine, coarse = torch.ones(1, 3, 4, 4), torch.ones(1, 3, 2, 2)
    student = Signals((2 + fine, coarse), rois=rois().rois)
    assert value(term("instance", region="proposals"), student, Signals((fine, coarse)), scene()) == pytest.approx(2)


@pytest.mark.parametrize(("distance", "reduction"), [("l2", "mean"), ("l2", "sum"), ("cor", "mean")])
def test_proposals_that_are_cut_one_after_another_are_as_those_cut_at_once(distance: str, reduction: str) -> None:
    # A proposal has 49 cells, which is more than this pyramid, so each goes alone; not under `cor`, which is over all of them.
    generator, shapes = torch.Generator().manual_seed(0), ((4, 4), (2, 2))
    ours, theirs = (tuple(torch.randn(1, 3, *shape, generator=generator).requires_grad_() for shape in shapes) for _ in range(2))
    regions = torch.tensor([[0.0, 1, 2, 9, 8], [0, 0, 0, 16, 16], [0, 5, 5, 15, 12], [0, 3, 0, 8, 9]])
    a_term = term("instance", distance, region="proposals", reduction=reduction)
    (found,) = policy_losses(Policy((a_term,)), Signals(ours, rois=Rois(regions)), Signals(theirs), scene()).values()
    samples = proposal_samples(regions, 1, shapes, (16, 16))
    expected = DISTANCES[distance](*(cut_proposals(cells_of(side), samples) for side in (ours, theirs)))
    expected = expected * (4 * 3 * 49 if reduction == "sum" else 1)
    assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(3 * found, ours), torch.autograd.grad(3 * expected, ours), strict=True):
        assert_close(one, other)


def test_no_proposals_is_no_loss() -> None:
    empty = Rois(torch.zeros(0, 5), torch.zeros(0, 3), torch.zeros(0, 2, 4), torch.zeros(0, 1, 4, 4))
    feat = torch.ones(1, 2, 4, 4)
    student, teacher = Signals((feat,), rois=empty), Signals((0 * feat,), rois=empty)
    terms = [term("instance", region="proposals"), term("logits", region="proposals"), term("logits", "kl_sigmoid", region="masks")]
    terms += [term("localization", "deltas", region="proposals"), term("logits", "pear_N", region="proposals")]
    for a_term in terms:
        assert value(a_term, student, teacher, scene()) == 0
    two = rois(scores=SCORES)
    assert (
        value(term("logits", "cor", region="proposals"), rois(scores=torch.zeros(2, 3)), two, scene()) == 0
    )  # of two there is no correlation


def test_what_proposals_lack_is_named() -> None:
    for student, teacher, who in ((rois(scores=SCORES), rois(), "teacher"), (rois(), rois(scores=SCORES), "student")):
        with pytest.raises(ValueError, match=rf"policy.terms\[0\] \(logits\): it needs scores of shared proposals, which the {who}"):
            value(term("logits", region="proposals"), student, teacher, scene())
    with pytest.raises(ValueError, match="scores of proposals is \\(2, 3\\) at the student and \\(2, 2\\)"):
        value(term("logits", region="proposals"), rois(scores=SCORES), rois(scores=SCORES[:, :2]), scene())
