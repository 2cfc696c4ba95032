"""Pointers and words of problems."""

import pytest

from detkds_api.problems import FieldError, dotted, invalid, pointer, pointer_of_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("policy.terms[1].transforms[2]", "/policy/terms/1/transforms/2"),
        ("recipe.lr", "/recipe/lr"),
        (".references[0]", "/references/0"),
        ("", ""),
    ],
)
def test_dotted_paths_become_pointers(path, expected):
    assert pointer_of_path(path) == expected


def test_pointers_escape_as_rfc_6901_says():
    assert pointer("a/b", "m~n", 0) == "/a~1b/m~0n/0"
    assert dotted("/a~1b/m~0n/0") == "a/b.m~n[0]"


def test_query_parameters_are_not_pointers():
    assert dotted("?limit") == "?limit"


def test_the_detail_reads_as_a_sentence_and_stays_short():
    problem = invalid(FieldError(f"/terms/{n}", "is wrong") for n in range(7))
    assert problem.detail.startswith("terms[0]: is wrong; terms[1]: is wrong")
    assert problem.detail.endswith("; and 2 more")
    assert len(problem.errors) == 7
