"""Policies with a name: as published, legal, and without torch."""

from detkds_core.policy import Policy, SearchSpace, Term, canonical, canonical_json, check, formula, named_policies


def test_their_formulas() -> None:
    formulas = {name: formula(one.policy) for name, one in named_policies().items()}
    assert formulas == {
        "none": "none",
        "fitnets": "l2(global)",
        "pkd": "5·l2(standardize(global))",
        "cwd": "5·kl(softmax_HW(global))",
        "cwd_logits": "5·kl(softmax_HW(logits))",
        "defeat": "3·l2[background=4](fgbg)",
        "dist": "pear(logits)",
        "ld": "0.25·kl_edges[T=10](localization)",
        "detkds_retinanet": "6·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_HW(local_s4(fgbg)))",
        "detkds_retinanet_x101": "50·l1(norm_C(catt(instance)))",
        "detkds_faster_rcnn": "2·l1(norm_N(scale_r2(catt(global)))) + 2·l2(norm_C(mask(fgbg)))"
        " + 0.1·pear(norm_C(mask(instance))) + 0.1·pear(softmax_C(logits))",
        "detkds_fcos": "5·l1(norm_N(scale_r2(catt(global)))) + 2·l1(norm_C(mask(fgbg)))",
        "detkds_gfl": "10·l1(norm_N(scale_r2(catt(global))))",
    }


def test_each_is_legal_canonical_different_and_says_where_it_is_from() -> None:
    named = named_policies()
    assert next(iter(named)) == "none"
    for name, one in named.items():
        assert one.name == name
        assert one.note.endswith(".")
        assert one.source or name == "none"
        assert not check(one.policy)
        assert canonical(one.policy) == one.policy
    assert len({canonical_json(one.policy) for one in named.values()}) == len(named)


def test_pkd_is_half_of_its_published_weight() -> None:
    assert named_policies()["pkd"].policy == Policy((Term("global", ("none", "none", "standardize"), "l2", 5.0),))


def test_a_search_on_any_gfl_pair_may_open_with_all_of_them() -> None:
    space = SearchSpace(images_per_batch=8, has_edges=True)
    assert not [reason for one in named_policies().values() for term in one.policy.terms for reason in space.contains(term)]
