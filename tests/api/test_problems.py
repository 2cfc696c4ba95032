"""Pointers and words of problems, and a problem that passes."""

import time

import httpx2
import pytest
from pydantic import SecretStr

from detkds_api.problems import FieldError, dotted, invalid, pointer, pointer_of_path
from detkds_api.settings import Settings
from detkds_client import Client, ProblemError

from .conftest import KEY, free_port, running


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


def test_a_database_that_is_away_is_answered_503_and_waited_for(databases, tmp_path, monkeypatch):
    url = databases.create()
    settings = Settings(home=tmp_path, port=free_port(), database_url=SecretStr(url), api_key=KEY)
    with running(settings) as address, Client(address, KEY.get_secret_value()) as operator:
        secret = operator.request("POST", "/keys", json={"name": "k", "owner": "ann", "scope": "run"})["secret"]
        databases.drop(url)  # whoever is connected
        for key in (KEY.get_secret_value(), secret):  # whose key the gate has to look up
            answer = httpx2.get(f"{address}/searches", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["detail"] == "the database does not answer; ask again in a moment"
        monkeypatch.setattr("detkds_client.connection.PATIENCE", 1.0)
        began = time.monotonic()
        with pytest.raises(ProblemError, match="the database does not answer"):
            operator.wait("/searches/0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa", None, 0.1, None)
        assert time.monotonic() - began > 1.0
