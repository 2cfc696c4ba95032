"""What a command line says in one word."""

import pytest

from detkds_client.spelling import changes, distillers_of, fields, names, numbers


def test_an_option_with_commas_may_be_repeated():
    assert numbers("--rungs", ["15,30", "60"]) == [15, 30, 60]
    assert names(["cat, dog", "tree"]) == ("cat", "dog", "tree")
    assert distillers_of(["pkd", "2·l2[auto, region=all](global), cwd"]) == ["pkd", "2·l2[auto, region=all](global)", "cwd"]


@pytest.mark.parametrize("read", [names, distillers_of, lambda texts: numbers("--rungs", texts)])
def test_an_option_that_is_not_given_says_nothing(read):
    assert read(None) is None


def test_empty_rungs_are_none_at_all():
    assert numbers("--rungs", [""]) == []
    assert distillers_of(["all"]) == "all"


def test_a_list_of_numbers_needs_no_brackets():
    asked = ["milestones=16,22", "train_short_sides=480", "augment=flip", "epochs=24", "clip=null", "lr=0.01"]
    assert fields(asked) == {
        "milestones": [16, 22],
        "train_short_sides": [480],
        "augment": "flip",
        "epochs": 24,
        "clip": None,
        "lr": 0.01,
    }
    assert fields(["milestones=[16, 22]"]) == fields(["milestones=16, 22"])
    assert changes(["recipe.milestones=16", "rungs=15,30", "references=pkd,cwd"]) == {
        "recipe": {"milestones": [16]},
        "rungs": [15, 30],
        "references": "pkd,cwd",
    }
