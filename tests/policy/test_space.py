"""What a search may try: legal, canonical, never the same again, and the same for the same seed."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from detkds_core.policy import PairFacts, Policy, SearchSpace, Term, canonical, canonical_json, legality, parse_formula
from detkds_core.policy.vocabulary import KNOWLEDGE, REGIONS, UNPUBLISHED, UNSEARCHED

SPACE = SearchSpace(knowledge=KNOWLEDGE, images_per_batch=8, has_edges=True)
FULL = SearchSpace(knowledge=KNOWLEDGE, images_per_batch=8, has_edges=True, has_points=True, breadth="full", regions=REGIONS)
ALONE = SearchSpace(knowledge=KNOWLEDGE, images_per_batch=1, has_edges=False, score_channels=1)


def term_of(text: str) -> Term:
    return parse_formula(text).terms[0]


@pytest.mark.parametrize("space", [SPACE, ALONE, replace(FULL, feature_weights=(2.0,), response_weights=(1.0,))])
def test_every_term_is_legal_canonical_and_different(space: SearchSpace) -> None:
    for knowledge in space.knowledge:
        terms = list(space.terms(knowledge))
        assert len(terms) == space.size(knowledge) * len(space.weights(knowledge))
        assert len({canonical_json(Policy((term,))) for term in terms}) == len(terms)
        for term in terms:
            assert not space.contains(term)
            assert canonical(Policy((term,))).terms == (term,)


def test_localization_has_as_many_formulas_as_distances() -> None:
    assert [SPACE.size("localization"), ALONE.size("localization")] == [4, 3]
    assert [str(term.distance) for term in ALONE.formulas("localization")] == ["l1", "iou", "giou"]


def test_a_single_score_on_a_single_image_leaves_these_formulas_of_logits() -> None:
    # Pearson and cosine need the positions beside the one score, KL needs a distribution over positions.
    # Where values lie within 1 of each other, smooth_l1 is half of l2.
    expected = {(norm, d) for norm in ALONE_NORMALISATIONS for d in ("l1", "l2")}
    expected |= {(norm, "smooth_l1") for norm in ("logsoftmax_HW", "batchnorm", "standardize")}
    expected |= {(norm, "ssim") for norm in ("none", "norm_HW", "min_max_normalize", "batchnorm", "standardize")}
    expected |= {("batch", "pear"), ("batch", "cos"), ("softmax_HW", "kl")}
    assert {(term.transforms[0], term.distance) for term in ALONE.formulas("logits")} == expected


ALONE_NORMALISATIONS = ("none", "norm_HW", "softmax_HW", "logsoftmax_HW", "min_max_normalize", "batchnorm", "standardize")


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("l1(norm_N(global))", "transforms[2]", "'norm_N' compares the images of a batch and is constant on one image"),
        ("l1(natt(instance))", "transforms[0]", "'natt' compares the images of a batch"),
        ("kl(softmax_N(logits))", "transforms[0]", "'softmax_N' compares the images of a batch"),
        (
            "kl_edges(localization)",
            "distance",
            "'kl_edges' needs edge distributions of both detectors (GFL), with as many bins; one",
        ),
        ("kl(softmax_C(logits))", "transforms[0]", "'softmax_C' is constant on a single class score; use norm_HW or softmax_HW"),
        ("pear(norm_HW(logits))", "distance", "'pear' over a single class score is constant; flatten with 'batch'"),
    ],
)
def test_what_a_pair_cannot_train_with(text: str, field: str, message: str) -> None:
    (reason,) = ALONE.contains(term_of(text))
    assert reason.field == field
    assert reason.message.startswith(message)
    assert SPACE.contains(term_of(text)) == []


def test_knowledge_outside_the_space() -> None:
    space = SearchSpace(knowledge=("global", "fgbg"))
    (reason,) = space.contains(term_of("l1(logits)"))
    assert str(reason) == "knowledge: this pair cannot exchange 'logits'; one of global, fgbg"
    with pytest.raises(ValueError, match="'logits' is not in the search space; one of global, fgbg"):
        space.sample(random.Random(0), "logits")


def test_a_published_space_stays_with_what_was_reachable() -> None:
    published = replace(FULL, breadth="published")
    for knowledge in KNOWLEDGE:
        for term in published.formulas(knowledge):
            assert not UNPUBLISHED & {*term.transforms, term.distance}
            assert term.region == "all"
        assert set(published.formulas(knowledge)) <= set(FULL.formulas(knowledge))
    # Terms that were designed by hand may have what the search itself does not try.
    assert published.contains(term_of("kl_sigmoid[region=teacher_score](logits)")) == []


def test_a_full_space_looks_wherever_the_pair_can() -> None:
    seen = {knowledge: {term.region for term in FULL.formulas(knowledge)} for knowledge in KNOWLEDGE}
    assert seen == {knowledge: set(regions) - set(UNSEARCHED) for knowledge, regions in REGIONS.items()}
    dense = replace(FULL, regions={"logits": ("all", "assigned")}, lacking={"logits.proposals": "there is no RoI head"})
    assert {term.region for term in dense.formulas("logits")} == {"all", "assigned"}
    (reason,) = dense.contains(term_of("l1[region=proposals](logits)"))
    assert str(reason) == "region: this pair cannot look for 'logits' at 'proposals' (there is no RoI head); one of all, assigned"
    rng = random.Random(8)
    assert {dense.mutate(rng, term_of("l1(logits)")).region for _ in range(60)} == {"all", "assigned"}


def test_regions_of_hand_designed_policies_are_legal_and_not_drawn() -> None:
    without = replace(FULL, regions={knowledge: tuple(set(regions) - set(UNSEARCHED)) for knowledge, regions in REGIONS.items()})
    start = term_of("0.25·kl_edges[T=10, region=assigned_score](localization)")
    assert FULL.has(start)
    assert not without.has(start)
    for knowledge in KNOWLEDGE:
        assert set(FULL.formulas(knowledge)) == set(without.formulas(knowledge))
    rng = random.Random(0)
    mutants = [FULL.mutate(rng, start) for _ in range(200)]
    assert {term.region for term in mutants} == set(REGIONS["localization"])  # its own too, where another gene has changed
    drawn = [FULL.mutate(rng, term_of("kl_edges[region=assigned](localization)")) for _ in range(200)]
    assert not {term.region for term in drawn} & set(UNSEARCHED)
    assert FULL.crossover(rng, start, term_of("0.25·giou[region=assigned_score](localization)")).region == "assigned_score"


def test_a_sum_becomes_a_mean_where_it_has_no_meaning() -> None:
    rng = random.Random(9)
    start = term_of("0.1·l2[reduction=sum](logits)")
    mutants = [FULL.mutate(rng, start) for _ in range(200)]
    assert {term.reduction for term in mutants if term.distance in ("l1", "l2", "smooth_l1", "kl_sigmoid") and term.region == "all"} == {
        "sum"
    }
    assert {term.reduction for term in mutants if term.distance in ("pear", "cos") or term.region != "all"} == {"mean"}


def test_a_space_knows_the_facts_of_its_pair() -> None:
    facts = PairFacts(4, True, 80, True, 81, {"global": ("all", "teacher_score")}, {"logits.masks": "no masks"})
    space = SearchSpace.of(facts, knowledge=("global",), breadth="full")
    assert space.facts == facts
    assert space.knowledge == ("global",)


def test_weights_and_options_of_hand_designed_terms_are_free() -> None:
    assert SPACE.contains(term_of("0.3·kl[T=7, warm_up=9](softmax_C(global))")) == []
    assert [reason.field for reason in SPACE.contains(Term("global", ("none",) * 3, "l2", 0.0))] == ["weight"]


def test_samples_are_spread_over_formulas_and_weights() -> None:
    rng = random.Random(0)
    drawn = Counter(SPACE.sample(rng, "localization") for _ in range(1200))
    assert set(drawn) == set(SPACE.terms("localization"))
    assert all(60 <= count <= 140 for count in drawn.values())  # 100 expected each, standard deviation 10


@pytest.mark.parametrize("space", [SPACE, ALONE, FULL])
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_mutants_and_children_are_legal_canonical_and_new(space: SearchSpace, knowledge: str) -> None:
    rng = random.Random(1)
    for _ in range(150):
        a, b = space.sample(rng, knowledge), space.sample(rng, knowledge)
        mutant, child = space.mutate(rng, a), space.crossover(rng, a, b)
        for term in (mutant, child):
            assert not space.contains(term)
            assert canonical(Policy((term,))).terms == (term,)
        assert mutant != a
        folded = "scale" in (a.transforms + b.transforms) or "smooth_l1" in (a.distance, b.distance)  # a factor of the weight
        assert child.weight in (a.weight, b.weight) or folded


def test_a_mutation_changes_one_gene_and_sometimes_two() -> None:
    rng = random.Random(2)
    start = term_of("2·l1(norm_N(local_s2(catt(global))))")
    changes = Counter(genes_changed(start, SPACE.mutate(rng, start)) for _ in range(600))
    assert set(changes) == {1, 2, 3}
    assert 420 <= changes[1] <= 540  # 480 expected, standard deviation 10, and a fold may hide or show one gene more
    assert changes[3] < 20


def genes_changed(a: Term, b: Term) -> int:
    return sum(x != y for x, y in zip((*a.transforms, a.distance, a.weight), (*b.transforms, b.distance, b.weight), strict=True))


def test_a_child_has_its_genes_from_its_parents() -> None:
    rng = random.Random(3)
    a, b = term_of("2·l1(norm_N(local_s2(catt(global))))"), term_of("5·pear(norm_HW(scale_r2(satt(global))))")
    children = {SPACE.crossover(rng, a, b) for _ in range(400)}
    assert not children & {a, b}
    for child in children:
        assert child.transforms[0] in ("catt", "satt", "none")  # none: catt under norm_HW is divided away
        assert child.transforms[1] in ("local_s2", "scale_r2")
        assert child.transforms[2] in ("norm_N", "norm_HW")
        assert child.distance in ("l1", "pear")
        assert child.weight in (2, 5)
    assert len(children) == 30  # 2^5 less both parents


def test_a_migrant_may_be_illegal_here() -> None:
    rng = random.Random(4)
    migrant = replace(term_of("5·pear(batch(local_s2(global)))"), knowledge="instance")
    assert legality(migrant)
    for _ in range(50):
        assert not SPACE.contains(SPACE.crossover(rng, term_of("2·l1(norm_C(instance))"), migrant))
    with pytest.raises(ValueError, match="neither parent is legal"):
        SPACE.crossover(rng, migrant, migrant)
    with pytest.raises(ValueError, match="both parents need the same"):
        SPACE.crossover(rng, term_of("l1(global)"), term_of("l1(fgbg)"))


def test_options_survive_where_they_do_something() -> None:
    rng = random.Random(5)
    start = term_of("2·kl[T=4, background=2, warm_up=500](softmax_HW(fgbg))")
    for _ in range(100):
        mutant = SPACE.mutate(rng, start)
        assert (mutant.background, mutant.warm_up) == (2, 500)
        assert mutant.temperature == (1 if mutant.distance != "kl" else 8 if "scale" in mutant.transforms else mutant.temperature)


def test_a_space_without_another_term_says_so() -> None:
    tiny = SearchSpace(knowledge=("localization",), response_weights=(1.0,))
    rng = random.Random(6)
    assert {tiny.mutate(rng, term_of("l1(localization)")).distance for _ in range(50)} == {"iou", "giou"}


def test_the_same_seed_gives_the_same_terms() -> None:
    def walk(seed: int) -> list[Term]:
        rng = random.Random(seed)
        terms = [SPACE.sample(rng, "fgbg")]
        for _ in range(20):
            terms.append(SPACE.mutate(rng, terms[-1]))
            terms.append(SPACE.crossover(rng, terms[-1], terms[-2]))
        return terms

    assert walk(7) == walk(7)
    assert walk(7) != walk(8)


def test_a_space_is_json_and_back() -> None:
    space = SearchSpace(knowledge=("global", "logits"), images_per_batch=4, has_edges=True, feature_weights=(1.0, 3.0), score_channels=10)
    assert SearchSpace.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    assert SearchSpace.from_json({"knowledge": ["global"]}).breadth == "published"  # as older searches are stored
    assert SearchSpace.from_json(space.to_json()) == space
    assert space.to_json()["feature_weights"] == [1.0, 3.0]
    with pytest.raises(ValueError, match=r"space\.wieghts: not known; one of knowledge, images_per_batch"):
        SearchSpace.from_json({"wieghts": [1]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"knowledge": ("global", "neck")}, r"space.knowledge\[1\]: 'neck' is not a kind of knowledge"),
        ({"breadth": "half"}, "space.breadth: 'half' is not a breadth; one of published, full"),
        ({"regions": {"neck": ("all",)}}, "space.regions.neck: 'neck' is not a kind of knowledge"),
        ({"regions": {"fgbg": ("all", "masks")}}, "space.regions.fgbg: 'masks' is not a region of fgbg; one of all"),
        ({"images_per_batch": 0}, "space.images_per_batch: 0 images; at least 1"),
        ({"feature_weights": ()}, r"space.feature_weights: \[\] is not a list of different weights"),
        ({"response_weights": (1.0, 1.0)}, r"space.response_weights: \[1.0, 1.0\] is not a list of different weights"),
        ({"response_weights": (1.0, -1.0)}, r"space.response_weights\[1\]: -1.0 is not a number above 0"),
    ],
)
def test_a_space_checks_its_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace(**fields)
