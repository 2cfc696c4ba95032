"""What a command line says in one word."""

import pytest

from detkds_client.spelling import changes, distillers_of, fields, in_commands, names, numbers


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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("there is no dataset 'x'; GET /datasets lists them", "there is no dataset 'x'; `detkds datasets` lists them"),
        ("it has none; distil with its policy first (POST /distill)", "it has none; distil with its policy first (`detkds distill`)"),
        ("?ap_at_least: 'x' is no number\n?sort: wrong", "--ap-at-least: 'x' is no number\n--sort: wrong"),
        ("GET /searches?state=SUCCEEDED lists those", "GET /searches?state=SUCCEEDED lists those"),
        ("'x' was refused (GET /datasets/x.1); GET /search-space", "'x' was refused (`detkds datasets show x.1`); GET /search-space"),
        ("GET /checkpoints/01K3. GET /results/r/policy, GET /jobs/j", "`detkds checkpoints show 01K3`. GET /results/r/policy, GET /jobs/j"),
    ],
)
def test_what_a_service_says_of_itself_is_told_in_commands(said, told):
    assert in_commands(said) == told


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
    assert fields(["milestones=true"]) == {"milestones": True}, "which the service refuses"
    assert fields(["milestones=[16, 22]"]) == fields(["milestones=16, 22"])
    assert changes(["recipe.milestones=16", "rungs=15,30", "references=pkd,cwd"]) == {
        "recipe": {"milestones": [16]},
        "rungs": [15, 30],
        "references": "pkd,cwd",
    }
