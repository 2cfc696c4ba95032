"""What a job of a search is asked to do."""

import pytest

from detkds_evolver.groups import job_spec, shared_out

SEARCH = {"dataset": {}, "teacher": {}, "student": {}, "inherit": True, "resize": True, "pair": "digits_gfl"}


def recipe_of(recipe, iterations):
    return job_spec({**SEARCH, "recipe": recipe}, "confirm", {0: {"terms": []}}, seed=1, iterations=iterations)["recipe"]


def test_a_job_matches_levels_as_its_search_does():
    assert job_spec({**SEARCH, "recipe": {}}, "evaluate", {}, seed=1)["resize"] is True


def test_the_iterations_of_a_confirmation_stand_in_place_of_epochs():
    # epochs would win, and milestones and evaluations were counted in them
    asked = {"epochs": 12, "milestones": [8, 11], "eval_every": 1, "iterations": 300, "batch": 8}
    assert recipe_of(asked, 500) == {"epochs": None, "milestones": None, "eval_every": None, "iterations": 500, "batch": 8}
    assert recipe_of(asked, None) == asked


def test_milestones_are_of_the_length_that_they_were_written_for():
    asked = {"epochs": None, "milestones": [200], "eval_every": 50, "iterations": 300}
    assert recipe_of(asked, 300) == asked
    assert recipe_of(asked, 150) == {**asked, "milestones": None, "iterations": 150}


@pytest.mark.parametrize(("count", "size", "lengths"), [(4, 3, [2, 2]), (7, 3, [3, 2, 2]), (3, 3, [3]), (1, 4, [1]), (5, 1, [1] * 5)])
def test_a_confirmation_is_shared_out_evenly(count, size, lengths):
    shares = shared_out(count, size)
    assert sorted(map(len, shares), reverse=True) == lengths
    assert [place for share in shares for place in share] == list(range(count))


def test_a_warm_up_that_a_confirmation_is_too_short_for_becomes_the_default():
    asked = {"epochs": None, "milestones": None, "warm_up": 500, "iterations": 1467}
    assert recipe_of(asked, 501) == {**asked, "iterations": 501}
    assert recipe_of(asked, 500) == {**asked, "warm_up": None, "iterations": 500}
