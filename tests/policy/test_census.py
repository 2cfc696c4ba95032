"""How many formulas there are, and why the rest are none: figures counted by hand."""

from detkds_core.policy import PairFacts, SearchSpace
from detkds_core.policy.census import OFFICIAL_FORMULAS, OFFICIAL_PROPER, census, census_table
from detkds_core.policy.meaning import RULES
from detkds_core.policy.pair import PAIR_RULES
from detkds_core.policy.vocabulary import BREADTHS, KNOWLEDGE, REGIONS

FACTS = PairFacts(images_per_batch=8, has_edges=True, has_points=True, regions=REGIONS)


def test_localization_counted_by_hand() -> None:
    # 2 transforms, 7 distances, 5 places. At cells: no deltas, no squared kl_edges. Of proposals: neither points nor kl_edges.
    row = census("localization", FACTS)
    assert row.raw == 2 * 7 * 5
    assert row.refused == {"boxes at cells, or of proposals": 4 * (2 + 1) + 2 * 2}
    assert row.legal == row.distinct == 4 * 11 + 10
    assert row.names == (("none", "pow2"), ("l1", "iou", "giou", "diou", "kl_edges", "points", "deltas"))
    without = census("localization", PairFacts(images_per_batch=8), regions=("all",))
    assert without.refused == {"boxes at cells, or of proposals": 3, "needs edges or points": 1 + 2}
    assert without.legal == 8
    assert without.names == (("none", "pow2"), ("l1", "iou", "giou", "diou")), "those that some legal formula has"


def test_published_global_counted_by_hand() -> None:
    # 5 attentions, 8 scales, 15 normalisations, 8 distances.
    row = census("global", FACTS, "published")
    assert row.raw == 5 * 8 * 15 * 8
    assert row.refused == {
        "kl needs a softmax": 5 * 8 * 12,
        # local_s1: 5 normalisations are constant, under 7 distances without kl, and softmax_HW under kl.
        "one position is left": 5 * (5 * 7 + 1),
        # What flattens (batch, channel, softmax_HW, logsoftmax_HW) after 8 scales; the other 11 after 3 of them, local_s1 without 3 norms.
        "ssim needs a map": 5 * (7 * 4 + 2 + 11 * 2 + 8),
    }


def test_everything_is_counted_once_and_as_the_search_counts() -> None:
    for breadth in BREADTHS:
        space = SearchSpace.of(FACTS, breadth=breadth)
        for knowledge in KNOWLEDGE:
            row = census(knowledge, FACTS, breadth)
            assert row.raw == row.legal + sum(row.refused.values())
            assert row.distinct == space.size(knowledge) <= row.legal
            assert set(row.refused) <= {*RULES, *PAIR_RULES}


def test_every_rule_refuses_something_of_its_own() -> None:
    poor = PairFacts(images_per_batch=1, score_channels=1, roi_channels=2)
    poor_rows = [census(knowledge, poor, regions=REGIONS[knowledge]) for knowledge in KNOWLEDGE]
    single = [census("logits", PairFacts(score_channels=1), regions=("all",)), census("global", PairFacts(), regions=("all",))]
    # A sum is an option, which the census of names does not have.
    assert {rule for row in (*poor_rows, *single) for rule in row.refused} == {*RULES, *PAIR_RULES} - {"a sum needs a fixed count"}


def test_the_table_has_the_official_figures_beside_ours() -> None:
    text = census_table([census("localization", FACTS)])
    assert text.splitlines()[0] == (
        "official space: 3,920 formulas a feature knowledge, of which proper losses: 1,752 at 2 images a batch, 1,098 at 1 image a batch"
    )
    assert text.splitlines()[-2:] == [
        "localization  full              70      54         54",
        "        16  boxes at cells, or of proposals",
    ]
    assert OFFICIAL_FORMULAS == 5 * 8 * 14 * 7
    assert sorted(OFFICIAL_PROPER) == [1, 2]
