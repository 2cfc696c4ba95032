"""Keys of the service: what their scope lets them do, whose things they see, how often they may ask, and when they end."""

import time

import httpx2
import pytest

from detkds_api import caller as callers
from detkds_api.settings import Settings
from detkds_core.store import Store, distillations, keys
from detkds_core.store.models import ApiKey

OPERATOR = "0123456789abcdef0123456789abcdef"  # of the `guarded` service
TRAINING = {"pair": "digits_gfl", "policy": "pkd", "recipe": {"iterations": 5}}


@pytest.fixture(scope="module")
def url(guarded) -> str:
    return guarded[0]


@pytest.fixture(scope="module")
def settings(guarded) -> Settings:
    return guarded[1]


def client(url: str, secret: str | None) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx2.Client(base_url=url, timeout=30, trust_env=False, headers=headers)


def made(url: str, **wanted: object) -> dict:
    with client(url, OPERATOR) as operator:
        answer = operator.post("/keys", json={"name": "test", "owner": "a", **wanted})
        assert answer.status_code == 201, answer.text
        return answer.json()


def test_a_key_is_shown_once_and_kept_as_a_hash(url, settings):
    key = made(url, name="laptop", owner="vision", scope="run", days=90)
    assert key["secret"].startswith("detkds_")
    assert len(key["secret"]) >= 7 + 43  # 256 bits in base64
    with Store(settings.url).read() as session:
        row = session.get(ApiKey, key["id"])
        kept = {column.name: getattr(row, column.name) for column in ApiKey.__table__.columns}
        assert row.digest == keys.digest(key["secret"])
    assert key["secret"] not in repr(kept)
    with client(url, OPERATOR) as operator:
        listed = next(one for one in operator.get("/keys").json()["items"] if one["id"] == key["id"])
    assert "secret" not in listed
    assert (listed["name"], listed["owner"], listed["scope"]) == ("laptop", "vision", "run")
    assert 89 < (time.mktime(time.strptime(listed["expires_at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.mktime(time.gmtime())) / 86400 < 91


@pytest.mark.parametrize(
    ("scope", "looks", "starts", "administers"), [("read", 200, 403, 403), ("run", 200, 202, 403), ("admin", 200, 202, 200)]
)
def test_a_scope_has_all_before_it_and_nothing_after(url, scope, looks, starts, administers):
    with client(url, made(url, scope=scope, owner=f"scope {scope}")["secret"]) as http:
        assert http.get("/distill").status_code == looks
        answer = http.post("/distill", json=TRAINING)
        assert answer.status_code == starts, answer.text
        if starts == 403:
            assert "scope 'run'" in answer.json()["detail"]
        assert http.get("/keys").status_code == administers
        preview = http.post("/searches/preview", json={"pair": "digits_gfl", "candidates": 12})
        assert preview.status_code == 200, preview.text


def test_what_belongs_to_somebody_else_is_not_there(url):
    mine, yours = (client(url, made(url, owner=owner)["secret"]) for owner in ("me", "you"))
    with mine, yours, client(url, OPERATOR) as operator:
        one = mine.post("/distill", json=TRAINING).json()
        assert [found["id"] for found in mine.get("/distill").json()["items"]] == [one["id"]]
        assert yours.get("/distill").json()["items"] == []
        for answer in (yours.get(f"/distill/{one['id']}"), yours.post(f"/distill/{one['id']}/cancel")):
            assert answer.status_code == 404
        assert operator.get(f"/distill/{one['id']}").status_code == 200
        assert mine.post(f"/distill/{one['id']}/cancel").json()["state"] == "CANCELLED"


def test_two_owners_may_use_one_idempotency_key(url):
    mine, yours = (client(url, made(url, owner=owner)["secret"]) for owner in ("one of two", "two of two"))
    header = {"Idempotency-Key": "the-same"}
    with mine, yours:
        first, again, other = (http.post("/distill", json=TRAINING, headers=header).json() for http in (mine, mine, yours))
    assert first["id"] == again["id"] != other["id"]


def test_a_key_that_was_revoked_or_has_ended_opens_nothing(url, settings, monkeypatch):
    monkeypatch.setattr(callers, "KNOWN_SECONDS", 0.0)
    key = made(url, owner="gone")
    with client(url, key["secret"]) as http, client(url, OPERATOR) as operator:
        assert http.get("/distill").status_code == 200
        assert operator.delete(f"/keys/{key['id']}").json()["revoked_at"] is not None
        answer = http.get("/distill")
        assert answer.status_code == 401
        assert "no longer valid" in answer.json()["detail"]
        assert operator.delete(f"/keys/{key['id']}").status_code == 200
        assert operator.delete("/keys/no-such-key").status_code == 404
    with Store(settings.url).begin() as session:
        _, short = keys.create(session, name="short", owner="a", scope="read", seconds=0.05)
    time.sleep(0.1)
    with client(url, short) as http:
        assert http.get("/distill").status_code == 401


@pytest.mark.parametrize("secret", [None, "wrong", "detkds_wrong", OPERATOR[:-1]])
def test_without_a_right_key_only_open_pages_answer(url, secret):
    with client(url, secret) as http:
        assert http.get("/health").status_code == 200
        answer = http.get("/results")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


def test_an_owner_may_have_so_many_at_once_and_a_repeated_request_is_none_more(url):
    with client(url, made(url, owner="busy")["secret"]) as http:
        first = http.post("/distill", json=TRAINING, headers={"Idempotency-Key": "first"})
        second = http.post("/distill", json={**TRAINING, "seed": 1})
        assert (first.status_code, second.status_code) == (202, 202)
        third = http.post("/distill", json={**TRAINING, "seed": 2})
        assert third.status_code == 429
        assert "2 may at once" in third.json()["detail"]
        assert http.post("/distill", json=TRAINING, headers={"Idempotency-Key": "first"}).json()["id"] == first.json()["id"]
        http.post(f"/distill/{second.json()['id']}/cancel")
        assert http.post("/distill", json={**TRAINING, "seed": 2}).status_code == 202
        long = http.post("/distill", json={**TRAINING, "recipe": {"iterations": 1001}})
        assert long.status_code == 429
        assert "1001 student iterations" in long.json()["detail"]


def test_a_key_that_asks_too_often_is_told_when_to_come_again(url, settings):
    with client(url, made(url, owner="eager", scope="read")["secret"]) as http:
        answers = [http.get("/results?limit=1") for _ in range(settings.requests_a_minute + 1)]
        assert {answer.status_code for answer in answers[:-1]} == {200}
        assert answers[-1].status_code == 429
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    with client(url, OPERATOR) as operator:
        assert operator.get("/results").status_code == 200


def test_when_a_key_was_last_used_is_noted(url, settings):
    key = made(url, owner="seen", scope="read")
    with client(url, key["secret"]) as http:
        http.get("/results")
    with Store(settings.url).read() as session:
        assert keys.get(session, key["id"]).last_used_at is not None
        assert distillations.count_active(session, "seen") == 0
