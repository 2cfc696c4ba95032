"""Every formula that the rules allow is a proper loss, and its canonical form computes the same.

`python -m detkds_core.losses.census --full` tries every legal formula on every extreme input in every precision; here each different one is
tried on one of them in turn.
"""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detkds_core.losses import Signals, policy_losses
from detkds_core.losses.toys import each_tensor, tensors_of, toy_scene, toy_signals
from detkds_core.losses.validity import CASES, NO_SLOPE, Verdict, classify, extreme_fault, figures, in_dtype
from detkds_core.policy import PairFacts, Policy, SearchSpace, Term, legality
from detkds_core.policy.canonical import canonical_term
from detkds_core.policy.pair import pair_legality
from detkds_core.policy.space import combinations_of
from detkds_core.policy.vocabulary import DIVERGENCES, KNOWLEDGE, REGIONS, RESPONSES, UNSEARCHED

IMAGES = 3  # the fewest that every formula can be computed on
FACTS = PairFacts(images_per_batch=IMAGES, has_edges=True, has_points=True, regions=REGIONS)
SPACE = SearchSpace.of(FACTS, breadth="full")
SCENE = toy_scene(IMAGES)
STUDENT, TEACHER = in_dtype(toy_signals(1, IMAGES), torch.float32), in_dtype(toy_signals(0, IMAGES), torch.float32)
THOROUGH = 8  # one in so many formulas is classified in full


def faults(number: int, term: Term) -> list[str]:
    """What is improper about a formula: empty for a proper loss."""
    value, slope, taught = figures(term, STUDENT, TEACHER, SCENE)
    found = [] if value > 0 and NO_SLOPE * value <= slope < float("inf") else [f"loss {value}, gradient {slope}"]
    found += ["the teacher learns"] if taught else []
    verdict = classify(term, IMAGES) if number % THOROUGH == 0 else Verdict({}, False)
    extreme = extreme_fault(term, *CASES[number % len(CASES)])
    return [*found, *verdict.faults.values(), *([extreme] if extreme else [])]


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_every_legal_formula_is_a_proper_loss(knowledge: str) -> None:
    improper = {term: found for number, term in enumerate(SPACE.formulas(knowledge)) if (found := faults(number, term))}
    assert not improper


@pytest.mark.parametrize("knowledge", RESPONSES)
def test_so_is_every_one_at_the_regions_of_hand_designed_policies(knowledge: str) -> None:
    legal = [term for term in combinations_of(knowledge, "full", UNSEARCHED) if not SPACE.contains(term)]
    terms = list(dict.fromkeys(replace(canonical_term(term), weight=1.0) for term in legal))
    assert {replace(term, region="assigned") for term in terms} == {term for term in SPACE.formulas(knowledge) if term.region == "assigned"}
    assert not {term: found for number, term in enumerate(terms) if (found := faults(number, term))}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extreme_inputs(case: tuple[str, torch.dtype]) -> None:
    """A sample of formulas of each knowledge on this input."""
    rng = random.Random(0)
    terms = [term for knowledge in KNOWLEDGE for term in rng.sample(SPACE.formulas(knowledge), 12)]
    assert [fault for term in terms if (fault := extreme_fault(term, *case))] == []


def test_what_is_improper_is_found() -> None:
    # Over two images a correlation is 0 or 2; on one there is nothing to compare; a sum of negative values is a root's domain.
    assert "cannot be computed" in classify(Term("global", ("none", "none", "none"), "cor", 1.0), images=2).faults
    assert "cannot be computed" in classify(Term("global", ("none", "none", "norm_N"), "l1", 1.0), images=1).faults
    assert "no gradient" in classify(Term("global", ("none", "local_s1", "norm_HW"), "pear_HW", 1.0)).faults
    assert "no gradient" in classify(Term("global", ("none", "local_s1", "softmax_HW"), "l1", 1.0)).faults
    assert classify(Term("global", ("none", "none", "none"), "l1", 1.0)).proper


def test_which_formulas_look_at_each_image_for_itself() -> None:
    def per_image(knowledge: str, *transforms: str, distance: str = "l1", region: str = "all") -> bool:
        verdict = classify(Term(knowledge, transforms, distance, 1.0, region=region), IMAGES)
        assert verdict.proper
        return verdict.per_image

    assert per_image("global", "catt", "scale_r2", "norm_C")
    assert per_image("global", "none", "none", "none", distance="ssim")
    assert per_image("instance", "satt", "none", "norm_HW", distance="cos")
    assert per_image("logits", "none", region="masks")
    assert not per_image("global", "catt", "scale_r2", "norm_N")
    assert not per_image("global", "none", "none", "standardize", distance="l2")
    assert not per_image("global", "none", "none", "none", distance="cor")
    assert not per_image("localization", "none", distance="l1")  # images weigh by what the teacher sees in them


@pytest.mark.parametrize("channels", [1, 2])
def test_every_formula_that_a_pair_with_few_classes_allows_is_a_proper_loss(channels: int) -> None:
    facts = replace(FACTS, images_per_batch=2, score_channels=channels)
    regions = ("all", "teacher_score", "foreground", "assigned", "assigned_score", "valuable")
    terms = [term for term in combinations_of("logits", "full", regions) if not legality(term) and not pair_legality(term, facts)]
    assert terms
    scores = [side.logits[0][:2, :channels].detach() for side in (STUDENT, TEACHER)]
    places = {name: tuple(x[:2] for x in getattr(STUDENT, name)) for name in ("assigned", "valuable")}
    for term in dict.fromkeys(map(canonical_term, terms)):
        student = scores[0].clone().requires_grad_()
        sides = Signals((), (student,), **places), Signals((), (scores[1],))
        (loss,) = policy_losses(Policy((term,)), *sides, toy_scene(2)).values()
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() > 0, term
        assert gradient.norm().item() > NO_SLOPE * loss.item(), term


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_the_canonical_form_computes_the_same(knowledge: str) -> None:
    rng = random.Random(0)
    terms = [term for term in combinations_of(knowledge, "full", REGIONS[knowledge]) if not legality(term)]
    folded = [term for term in terms if not pair_legality(term, FACTS) and canonical_term(term) != replace(term, weight=1.0)]
    for term in rng.sample(folded, min(250, len(folded))):
        original = with_options(term, rng)
        canonical = canonical_term(original)
        (value, slope), (other, other_slope) = (value_and_gradient(t) for t in (original, canonical))
        assert value == pytest.approx(other, rel=1e-5, abs=1e-7), (original, canonical)
        assert (slope - other_slope).norm() <= 1e-4 * slope.norm() + 1e-7, (original, canonical)


def with_options(term: Term, rng: random.Random) -> Term:
    """The term with a random value of every option that its formula has."""
    summed = replace(term, reduction="sum")
    return replace(
        summed if not legality(summed) and rng.random() < 0.3 else term,
        weight=rng.choice([0.5, 1.0, 6.0]),
        temperature=rng.choice([1.0, 2.0, 4.0]) if term.distance in DIVERGENCES else 1.0,
        shared_attention=rng.random() < 0.5 and term.transforms[0] in ("satt", "catt"),
        background=rng.choice([0.0, 0.5, 2.0]) if term.knowledge == "fgbg" else 0.5,
    )


def value_and_gradient(term: Term) -> tuple[float, Tensor]:
    """In float64: where values are far greater than their spread, two ways to compute the same round unlike in float32."""
    student, teacher = (in_dtype(side, torch.float64) for side in (STUDENT, TEACHER))
    (loss,) = policy_losses(Policy((term,)), student, teacher, SCENE).values()
    ours = tensors_of(student)
    gradients = torch.autograd.grad(loss, ours, allow_unused=True)
    return loss.item(), torch.cat(
        [torch.zeros_like(x).flatten() if g is None else g.flatten() for x, g in zip(ours, gradients, strict=True)]
    )


def test_a_term_without_boxes_is_still_a_function_of_the_student() -> None:
    rng = random.Random(1)
    nowhere = replace(TEACHER.rois, regions=TEACHER.rois.regions[:0], scores=TEACHER.rois.scores[:0], boxes=TEACHER.rois.boxes[:0])
    nowhere = replace(nowhere, masks=TEACHER.rois.masks[:0])
    no_cells = {"assigned": tuple(x & False for x in STUDENT.assigned), "valuable": tuple(0 * x for x in STUDENT.valuable)}
    empty = each_tensor(replace(STUDENT, rois=nowhere, **no_cells), torch.clone)
    for knowledge in ("fgbg", "instance", "logits", "localization"):
        for term in rng.sample(SPACE.formulas(knowledge), 40):
            if term.knowledge in ("logits", "localization") and term.region in ("all", "teacher_score"):
                continue
            sides = each_tensor(empty, lambda x: x.detach().requires_grad_()), replace(TEACHER, rois=nowhere)
            (loss,) = policy_losses(Policy((term,)), *sides, toy_scene(IMAGES, empty=True)).values()
            loss.backward()
            assert loss.item() == 0, term
            slopes = [x.grad for x in tensors_of(sides[0]) if x.grad is not None]
            assert slopes, term
            assert all(slope.abs().sum() == 0 for slope in slopes), term
