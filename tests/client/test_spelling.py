"""What a command line says in one word."""

import pytest

from detkds_client.spelling import distillers_of, names, numbers


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
