"""What one owner may have at once, where many requests come at once: on Postgres, whose transactions do not see one another."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx2
import pytest
from pydantic import SecretStr

from detkds_api.uploads import UNFINISHED
from detkds_core.store import owners

from .conftest import KEY, Service, serving
from .earlier import succeeded

ACTIVE = 3
AT_ONCE = 12


@pytest.fixture(scope="module")
def service(tmp_path_factory, databases, migrated_template) -> Iterator[Service]:
    url = databases.create(template=migrated_template)
    with serving(tmp_path_factory, database_url=SecretStr(url), api_key=KEY, quota_active=ACTIVE) as one:
        yield one
        one.store.close()
    databases.drop(url)


@pytest.fixture
def holder(service) -> Iterator[Callable[[str], httpx2.Client]]:
    """Make a client with a new key of an owner."""
    made: list[httpx2.Client] = []

    def client(owner: str) -> httpx2.Client:
        secret = service.http.post("/keys", json={"name": "k", "owner": owner}).json()["secret"]
        made.append(httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {secret}"}, timeout=120, trust_env=False))
        return made[-1]

    yield client
    for one in made:
        one.close()


def at_once(http: httpx2.Client, path: str, bodies: list[dict], **headers: str) -> list[httpx2.Response]:
    """The answers to requests that are sent at the same moment."""
    ready = Barrier(len(bodies))

    def send(body: dict) -> httpx2.Response:
        ready.wait(30)
        return http.post(path, json=body, headers=headers)

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(send, bodies))


def test_no_more_searches_are_accepted_at_once_than_one_after_the_other(service, holder):
    http = holder("busy")
    assert http.post("/searches", json=service.search()).status_code == 202
    answers = at_once(http, "/searches", [service.search() | {"seed": seed} for seed in range(AT_ONCE)])
    assert Counter(answer.status_code for answer in answers) == {202: ACTIVE - 1, 429: AT_ONCE - ACTIVE + 1}
    assert len(http.get("/searches").json()["items"]) == ACTIVE
    full = f"{ACTIVE} searches and distillations of 'busy' wait or run already"
    assert all(answer.json()["detail"].startswith(full) for answer in answers if answer.status_code == 429)


def test_no_more_distillations_either(service, holder):
    http = holder("busy with students")
    body = {name: service.search()[name] for name in ("dataset", "teacher", "student", "recipe")} | {"policy": "pkd"}
    answers = at_once(http, "/distill", [body | {"seed": seed} for seed in range(AT_ONCE)])
    assert Counter(answer.status_code for answer in answers) == {202: ACTIVE, 429: AT_ONCE - ACTIVE}


def test_no_more_extensions_either(service, holder):
    http = holder("busy with more")
    body = service.search()
    mine = Service(service.url, http, service.store, service.settings, service.roots)
    search, _ = succeeded(mine, body, [("!none", 2, 10.0)])
    http.post(f"/searches/{http.get('/searches').json()['items'][0]['id']}/cancel")
    with service.store.begin() as session:
        session.connection().exec_driver_sql("UPDATE searches SET owner = 'busy with more' WHERE id = %s", (search,))
    answers = at_once(http, f"/searches/{search}/extend", [{"iterations": 100 + number} for number in range(AT_ONCE)])
    assert Counter(answer.status_code for answer in answers) == {202: ACTIVE, 429: AT_ONCE - ACTIVE}


def test_one_request_sent_often_at_once_is_one_and_no_copy_of_it_is_one_too_many(service, holder):
    http = holder("impatient")
    for seed in range(ACTIVE - 1):
        assert http.post("/searches", json=service.search() | {"seed": seed}).status_code == 202
    answers = at_once(http, "/searches", [service.search() | {"seed": 7}] * AT_ONCE, **{"Idempotency-Key": "the-last-one"})
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_no_more_uploads_are_begun_at_once_than_one_after_the_other(holder):
    http = holder("busy with files")
    bodies = [{"name": f"n{number}", "size": 3, "sha256": "0" * 64} for number in range(UNFINISHED + 4)]
    answers = at_once(http, "/checkpoints", bodies)
    assert Counter(answer.status_code for answer in answers) == {201: UNFINISHED, 429: 4}
    assert len(http.get("/checkpoints").json()["items"]) == UNFINISHED


def test_a_file_announced_often_at_once_is_one(holder):
    answers = at_once(holder("hasty"), "/checkpoints", [{"name": "n", "size": 3, "sha256": "0" * 64}] * 6)
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_one_owner_waits_for_no_other(service, holder):
    """While somebody's request is counted and not stored yet."""
    with service.store.begin() as session:
        owners.hold(session, "slow")
        assert holder("quick").post("/searches", json=service.search()).status_code == 202
