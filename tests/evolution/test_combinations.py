"""Stage 2: what hand-designed policies add to it, and that its weights can be read."""

from dataclasses import replace

from detkds_core.evolution import Outcome, Spec
from detkds_core.evolution.combinations import grafted, mutation, together
from detkds_core.evolution.history import History, generator, rounded
from detkds_core.evolution.islands import draw, opening
from detkds_core.evolution.spec import Candidate, Job
from detkds_core.policy import Policy, SearchSpace, Term, canonical, check, parse_formula

from .worlds import EVERY, NONE, PKD, make_spec, run, uniform

RATIOS = SearchSpace(knowledge=EVERY, images_per_batch=8, has_edges=True, balanced=True, feature_weights=(1.0, 10.0, 100.0))
FRS = canonical(parse_formula("l2[region=teacher_score, warm_up=500](global) + 0.02·kl_sigmoid(logits)"))
FGD = canonical(parse_formula("fgd"))


def seen(spec, *measured):
    """The view after each (policy, AP, ratio) has been measured at the lowest rung as a reference."""
    history = History(spec)
    candidates = tuple(Candidate(index, canonical(policy), "reference") for index, (policy, _, _) in enumerate(measured))
    history.asked(Job(0, 0, 0, tuple(range(len(measured))), candidates))
    history.told(0, {index: Outcome(ap, ratio=ratio) for index, (_, ap, ratio) in enumerate(measured)})
    return history


def mutants(history, count=400):
    choices = {"global": [(Term("global", ("none", "none", "none"), "l1", 1.0), 1)]}
    return [mutation(history, choices, generator(0, number)) for number in range(count)]


def test_a_policy_with_a_distiller_breeds_and_keeps_it_or_loses_it():
    history = seen(make_spec(), (NONE, 10, None), (FGD, 20, None))
    found = [(policy, parents) for (policy, parents), _ in mutants(history)]
    assert any(policy.distillers == FGD.distillers and len(policy.terms) == 1 for policy, _ in found)
    assert all(1 in parents for _, parents in found), "it is the parent of all"


def test_a_distiller_that_helps_is_added_to_other_policies_and_one_that_hurts_is_not():
    for ap, expected in ((18, True), (5, False)):
        history = seen(make_spec(), (NONE, 10, None), (PKD, 20, None), (FGD, ap, None))
        found = [policy for (policy, _), operator in mutants(history) if operator == "toggle" and policy.terms == PKD.terms]
        assert any(policy.distillers == FGD.distillers for policy in found) is expected


def test_a_distiller_is_weighed_as_a_term_is():
    history = seen(make_spec(), (NONE, 10, None), (FGD, 20, None))
    weighed = [policy for (policy, _), operator in mutants(history) if operator == "weight" and not policy.terms]
    assert {policy.distillers[0].weight for policy in weighed} == {0.5, 2.0}
    assert all(canonical(policy) == policy and not check(policy) for policy in weighed)


def test_where_and_from_when_a_term_looks_passes_to_other_terms():
    history = seen(make_spec(), (NONE, 10, None), (PKD, 20, None), (FRS, 12, None))
    looks = {(term.region, term.warm_up) for (policy, _), operator in mutants(history) if operator == "look" for term in policy.terms}
    assert ("teacher_score", 500) in looks
    kept = [policy for (policy, _), operator in mutants(history) if operator == "look" and policy.terms[0].distance == "l2"]
    assert {replaced.terms[0].weight for replaced in kept if len(replaced.terms) == 1} == {5.0}


def test_when_a_part_counts_passes_to_distillers():
    late = canonical(parse_formula("mgd[stop=0.5, decay=0.1]"))
    for best, other, expected in (
        (FGD, late, {("fgd", 500, 1.0, 1.0, (1, 2)), ("fgd", 0, 0.5, 0.1, (1, 3))}),
        (late, FGD, {("mgd", 500, 1.0, 1.0, (1, 2)), ("mgd", 0, 1.0, 1.0, (1, 0))}),
    ):
        plain = Policy((Term("logits", ("none",), "l1", 1.0),))
        history = seen(make_spec(), (plain, 1, None), (best, 20, None), (FRS, 12, None), (other, 2, None))
        looks = [(policy, parents) for (policy, parents), operator in mutants(history) if operator == "look" and not policy.terms]
        timed = {(one.name, one.warm_up, one.stop, one.decay, parents) for policy, parents in looks for one in policy.distillers}
        assert timed == expected, "never its own"
        assert all(canonical(policy) == policy and not check(policy) for policy, _ in looks)
        assert {policy.distillers[0].weight for policy, _ in looks} == {1.0}
    alike = seen(make_spec(), (NONE, 10, None), (FGD, 20, None), (PKD, 12, None))
    assert not [policy for (policy, _), operator in mutants(alike) if operator == "look" and not policy.terms]


def test_a_fixed_weight_becomes_the_ratio_that_was_seen_at_the_fork():
    spec = make_spec(space=RATIOS, references=(NONE, PKD), knowledge=("global",))
    history = seen(spec, (NONE, 10, None), (PKD, 20, 78.4321))
    term = history.own_term(history.members("global")[0])
    assert (term.weight, term.balanced) == (78.4, True)
    assert (term.transforms, term.distance) == (PKD.terms[0].transforms, PKD.terms[0].distance)
    unseen = seen(spec, (NONE, 10, None), (PKD, 20, None))
    assert unseen.own_term(unseen.members("global")[0]) == PKD.terms[0]


def test_children_of_a_hand_designed_term_pull_as_hard_as_it_does():
    spec = make_spec(space=RATIOS, references=(NONE, PKD), knowledge=("global",), budget=100, rungs=(10, 90))
    history = seen(spec, (NONE, 10, None), (PKD, 20, 78.4321))
    for number in range(2):  # the opening
        history.asked(Job(number + 1, 0, 0, (number + 2,), (Candidate(number + 2, NONE, "stage1", "global", (), "sample"),)))
    drawn = [draw(history, "global", generator(1, number)) for number in range(200)]
    weights = [term.weight for term, _, operator in drawn if operator == "mutate"]
    assert 78.4 in weights
    assert {round(weight, 1) for weight in weights} <= {78.4, 1.0, 10.0, 100.0}


def test_weights_have_three_digits_whatever_they_are_made_of():
    policy, _ = together([(Term("global", ("none", "none", "none"), "l2", 3.0), 0), (Term("logits", ("none",), "l2", 0.7), 1)], 3**-0.5)
    assert [term.weight for term in policy.terms] == [1.73, 0.404]
    evolution = run(make_spec(), lambda policy, job, earlier: Outcome(20 + uniform(str(policy))))
    assert all(term.weight == rounded(term.weight) for one in evolution.candidates for term in one.policy.terms)


def test_a_small_search_opens_with_fewer_terms_an_island():
    def openings(budget, rungs=(10, 90)) -> int:
        return opening(History(Spec(EVERY, budget, 0, (NONE,), SearchSpace(images_per_batch=8, has_edges=True), rungs)))

    assert [openings(budget) for budget in (100, 1500, 2500, 100_000)] == [2, 3, 5, 6]


def test_the_best_terms_are_grafted_onto_the_best_hand_designed_policies_of_several():
    kl = Term("logits", ("softmax_HW",), "kl", 5.0)
    boxes = Term("localization", ("none",), "l1", 1.0)
    better = canonical(parse_formula("l2[region=teacher_score, warm_up=500](global) + 0.04·kl_sigmoid(logits)"))
    history = seen(make_spec(), (NONE, 10, None), (FRS, 15, None), (better, 20, None), (PKD, 25, None))
    moves = list(grafted(history, [(kl, 4), (boxes, 5)]))
    (global_term, logits_term), (frs_global, frs_logits) = better.terms, FRS.terms
    half_kl, half_boxes = replace(kl, weight=2.5), replace(boxes, weight=0.5)
    assert moves == [
        (Policy((global_term, half_kl)), (2, 4)),
        (Policy((global_term, logits_term, half_boxes)), (2, 5)),
        (Policy((frs_global, half_kl)), (1, 4)),
        (Policy((frs_global, frs_logits, half_boxes)), (1, 5)),
    ]
    assert not list(grafted(seen(make_spec(), (NONE, 10, None), (PKD, 25, None)), [(kl, 4)])), "nobody has several terms"
    proposed = replace(better, terms=(replace(better.terms[0], weight=3.0), better.terms[1]))
    history.asked(Job(1, 0, 0, (4,), (Candidate(4, proposed, "stage2", None, (), "combine"),)))
    history.told(1, {4: Outcome(30)})
    assert list(grafted(history, [(kl, 4), (boxes, 5)])) == moves, "whatever was combined before"
